"""What a data set looks like, in a few words: content that differs shows, randomness and addresses do not."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import IterableDataset

from gssf_plug.retrieval.data.digest import describe_rows


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.zeros(2), torch.ones(2)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64)),
        (torch.zeros(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.bfloat16)),
        (np.arange(3), np.arange(4)),
        ("a", "b"),
        (["a", "b"], ["ab"]),
        (1, True),
        (None, 0),
        (Image.new("RGB", (2, 2)), Image.new("RGB", (2, 2), (1, 0, 0))),
        ({"u": 1}, {"v": 1}),
        (b"a", b"b"),
    ],
)
def test_content_that_differs_has_another_digest(one, other):
    first, again, second = (describe_rows([{"x": value}]) for value in (one, one, other))
    assert first == again
    assert first["columns"] == ["x"]
    assert first["row 0"] != second["row 0"]


def test_objects_count_by_their_type_and_unreadable_rows_say_so():
    assert describe_rows([object()]) == describe_rows([object()])

    class Broken(list):
        def __getitem__(self, index):
            raise OSError

    assert describe_rows(Broken([1])) == {"row 0": "cannot be read"}


def test_random_rows_are_read_alike():
    class Augmented(list):
        def __getitem__(self, index):
            return {"x": torch.rand(2) + np.random.rand()}  # noqa: NPY002

    state = torch.get_rng_state()
    assert describe_rows(Augmented([1, 2])) == describe_rows(Augmented([1, 2]))
    assert torch.equal(state, torch.get_rng_state())


def test_the_first_rows_are_enough_and_more_are_not_read():
    read = []

    class Noted(list):
        def __getitem__(self, index):
            read.append(index)
            return {"b": index, "a": 1}

    found = describe_rows(Noted(range(100)))
    assert read == [0, 1, 2]
    assert found["columns"] == ["a", "b"]
    assert len({found[f"row {number}"] for number in range(3)}) == 3
    assert all(len(found[f"row {number}"]) == 16 for number in range(3))


def test_a_stream_gives_its_columns_and_no_row():
    class Stream(IterableDataset):
        def __iter__(self):
            raise AssertionError("a row was eaten")

    stream = Stream()
    assert describe_rows(stream) == {}
    stream.column_names = ["text", "image"]
    assert describe_rows(stream) == {"columns": ["image", "text"]}
