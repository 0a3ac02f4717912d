"""What every reader of a data set's layout must hold, inherited by one test class per set in tests/retrieval/data/sets.

A subclass writes a miniature of the layout into a folder and opens it.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from gssf_plug.errors import DataError
from gssf_plug.retrieval.data import column


class DataSetContract:
    kinds = {"image": Image.Image, "captions": list, "label": int, "camera": int}
    columns: set[str]
    splits: tuple[str, ...] = ("train",)

    def write(self, folder: Path) -> Path:
        """The miniature; the folder to be opened."""
        raise NotImplementedError

    def open(self, folder: Path, split: str) -> Any:
        raise NotImplementedError

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return self.write(tmp_path)

    def test_every_split_has_the_columns_and_their_kinds(self, folder: Path) -> None:
        for split in self.splits:
            rows = self.open(folder, split)
            assert set(rows.column_names) == self.columns
            assert len(rows) > 1
            for row in (rows[0], rows[len(rows) - 1]):
                for name in self.columns - {"features"}:
                    assert isinstance(row[name], self.kinds[name]), (split, name)
                if "features" in self.columns:
                    assert torch.as_tensor(row["features"]).dtype == torch.float32
                if "image" in self.columns:
                    assert row["image"].mode == "RGB"
                assert all(isinstance(text, str) and text for text in row.get("captions", []))

    def test_a_column_is_read_without_decoding_a_row(self, folder: Path) -> None:
        rows = self.open(folder, self.splits[0])
        assert column(rows, "label") == [rows[number]["label"] for number in range(len(rows))]

    def test_it_opens_alike_every_time(self, folder: Path) -> None:
        one, again = (self.open(folder, self.splits[0]) for _ in range(2))
        assert column(one, "label") == column(again, "label")

    def test_a_folder_that_is_not_there_is_named(self, folder: Path) -> None:
        with pytest.raises(DataError, match="nowhere"):
            self.open(folder / "nowhere", self.splits[0])

    def test_an_empty_folder_says_what_it_lacks(self, tmp_path: Path) -> None:
        empty = tmp_path / "empty"
        empty.mkdir()
        with pytest.raises(DataError, match="empty"):
            self.open(empty, self.splits[0])
