"""Any set of the `datasets` library, local or from the hub, by the names of its columns.

A row for each caption of each image: what the image–text literature calls an epoch.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gssf_plug.arguments import check_path, check_text
from gssf_plug.errors import ArgumentError, DataError, near_matches
from gssf_plug.retrieval.data.images import Rows
from gssf_plug.retrieval.data.source_files import StrPath, column, decode_columns, existing_folder, numbered

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["CaptionPairs", "columns_of", "read_columns"]

READERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv", ".arrow": "arrow"}


def read_columns(
    source: "Dataset | StrPath",
    split: str = "train",
    *,
    image: str | None = None,
    features: str | None = None,
    captions: str | None = None,
    label: str | None = None,
    camera: str | None = None,
) -> "Dataset":
    """A set with its columns renamed to ours; what is not named is left out.

    Args:
        source: a `datasets.Dataset`; a folder of `save_to_disk`; a .parquet, .json, .jsonl, .csv or .arrow file; or
            anything that `datasets.load_dataset` takes, such as a Hub id or a folder of such files.
        split: name of the split to read; a `Dataset`, or a set that was saved as a single one, has none.
        image: name of a column of images: a `datasets.Image`, encoded bytes or paths. Default none.
        features: name of a column of regions × width numbers. Default none.
        captions: name of a column of texts, or of lists of texts. Default none.
        label: name of a column of whole numbers or of names (which are numbered in sorted order); None (default) makes
            each row its own label.
        camera: name of a column of cameras, as whole numbers or names; None (default) gives no cameras.

    Returns:
        A `datasets.Dataset` with the columns image, features, captions, label and camera, as far as they were named.
        Images are decoded when their row is read.

    Raises:
        ArgumentError: neither images nor features are named, or the set lacks a column.
        DataError: a local folder does not exist, or has no such split.

    Example:
        >>> from datasets import Dataset
        >>> rows = Dataset.from_dict({"vec": [[[0.0, 1.0]], [[2.0, 3.0]]], "text": ["a", "b"], "who": ["x", "y"]})
        >>> read_columns(rows, features="vec", captions="text", label="who")[1]["label"]
        1
    """
    named = {"image": image, "features": features, "captions": captions, "label": label, "camera": camera}
    for ours, theirs in named.items():
        if theirs is not None:
            check_text(ours, theirs, "be None or the name of a column", "Name it as the set does.")
    if (image is None) == (features is None):
        got = "both" if image is not None else "neither"
        raise ArgumentError("image", "be named, or else features", got, "Name the column that is to be encoded.")
    rows = _load(source, split)
    wanted = {ours: theirs for ours, theirs in named.items() if theirs is not None}
    for ours, theirs in wanted.items():
        if theirs not in rows.column_names:
            raise ArgumentError(
                ours,
                f"be a column of the set, {rows.column_names}",
                repr(theirs),
                near_matches(theirs, rows.column_names),
            )
    return _renamed(rows, wanted)


columns_of = read_columns  # its older name


def _renamed(rows: "Dataset", wanted: dict[str, str]) -> "Dataset":
    from datasets import Image

    rows = rows.with_format(None).select_columns(sorted(set(wanted.values())))
    if "image" in wanted and isinstance(rows.features[wanted["image"]], Image):
        rows = rows.cast_column(wanted["image"], Image(decode=False))  # we decode, so that a damaged one is named
    numbers = {name: _numbers(name, column(rows, wanted[name])) for name in ("label", "camera") if name in wanted}
    numbers.setdefault("label", list(range(len(rows))))
    kept = {theirs: ours for ours, theirs in wanted.items() if ours not in numbers}
    rows = rows.select_columns(list(kept)).rename_columns(
        {theirs: ours for theirs, ours in kept.items() if theirs != ours}
    )
    for name, values in numbers.items():
        rows = rows.add_column(name, values)
    rows.set_transform(decode_columns)
    return rows


def _numbers(name: str, values: list[Any]) -> list[int]:
    missing = next((row for row, value in enumerate(values) if value is None or value != value), None)  # None, NaN
    if missing is not None:
        got = f"none in row {missing}"
        raise ArgumentError(name, "be filled in every row", got, "Drop these rows, or name another column.")
    return values if all(isinstance(value, int) for value in values) else numbered([str(value) for value in values])


def _load(source: "Dataset | StrPath", split: str) -> "Dataset":
    from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

    check_text("split", split, "be the name of a split", "Such as 'train'.")
    if isinstance(source, Dataset):
        return source
    check_path("source", source)
    path = Path(source).expanduser()
    if path.suffix in READERS and path.is_file():
        return load_dataset(READERS[path.suffix], data_files=str(path), split="train")
    if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
        saved = load_from_disk(str(path))
        if not isinstance(saved, DatasetDict):
            return saved
        if split not in saved:
            raise DataError(path, f"has no split '{split}'", near_matches(split, saved))
        return saved[split]
    if path.is_absolute() or path.suffix in READERS or os.fspath(source).startswith((".", "~")):
        existing_folder(path)
    return load_dataset(os.fspath(source), split=split)


class CaptionPairs:
    """Rows (image, one caption) of a set with several captions per image, in the order of the set.

    An epoch over it sees each image as often as it has captions: 145,000 rows of Flickr30K. Two pairs of one image keep
    its label, so neither caption is a negative of the other.

    Args:
        rows: a `datasets.Dataset` with the columns `captions` and `label`.

    Raises:
        ArgumentError: there is no column of captions.

    Example:
        >>> from datasets import Dataset
        >>> rows = Dataset.from_dict({"captions": [["a", "b"], ["c"]], "label": [7, 8]})
        >>> [CaptionPairs(rows)[number] for number in range(3)][1]
        {'captions': ['b'], 'label': 7}
    """

    def __init__(self, rows: Any) -> None:
        if "captions" not in rows.column_names:
            raise ArgumentError("rows", "have a column 'captions'", rows.column_names, "Name it with read_columns.")
        counts = [1 if isinstance(texts, str) else len(texts) for texts in column(rows, "captions")]
        self.rows: Rows = rows
        # pair number -> image and caption: two flat tables instead of a list of tuples
        self._image = np.repeat(np.arange(len(counts)), counts)
        self._caption = np.concatenate([np.arange(count) for count in counts])

    def __len__(self) -> int:
        return len(self._image)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        row = self.rows[int(self._image[index])]
        captions = [row["captions"]] if isinstance(row["captions"], str) else row["captions"]
        return {**row, "captions": [captions[self._caption[index]]]}
