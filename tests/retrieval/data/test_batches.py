"""Plans, parts of processes, seeded reading, unreadable rows."""

import random

import numpy as np
import pytest
import torch
from datasets import Dataset

from gssf_plug.errors import ArgumentError
from gssf_plug.retrieval import RandomBatches
from gssf_plug.retrieval.data.batches import BatchReader, load_batches, ordered_batches
from gssf_plug.retrieval.data.images import UnreadableError


def test_random_batches_are_an_epoch_in_a_new_order():
    batches = RandomBatches(23, 5, seed=1)
    first, again = list(batches), list(batches)
    assert first == again
    assert len(first) == len(batches) == 4
    seen = [row for batch in first for row in batch]
    assert len(set(seen)) == 20
    batches.set_epoch(1)
    assert list(batches) != first
    other = RandomBatches(23, 5, seed=0)
    other.set_epoch(1)
    assert list(other) != first


@pytest.mark.parametrize(("rows", "size", "processes"), [(10, 4, 1), (9, 4, 2), (5, 8, 3), (7, 1, 3), (3, 3, 3)])
def test_ordered_batches_have_a_row_for_every_process(rows, size, processes):
    plan = ordered_batches(rows, size, processes)
    assert [row for batch in plan for row in batch] == list(range(rows))
    assert min(map(len, plan)) >= processes


def test_parts_in_the_order_of_rank_are_the_batch():
    plan = [[5, 3, 1, 8, 2, 7, 0], [4, 6]]
    readers = [BatchReader(range(10), list, plan, process=rank, processes=3) for rank in range(3)]
    assert sum((reader[0].batch for reader in readers), []) == plan[0]
    assert {len(reader[0].batch) for reader in readers} == {2, 3}


def draws(rows):
    return [*rows, torch.rand(1).item(), random.random(), np.random.rand()]  # noqa: NPY002


def test_randomness_depends_on_seed_epoch_and_batch_alone():
    plan = [[0, 1], [2, 3], [4, 5]]
    reader = BatchReader(range(6), draws, plan, seed=5, epoch=2)
    expected = [reader[number].batch for number in range(3)]
    random.random()
    torch.rand(3)
    assert [read.batch for read in load_batches(reader)] == expected
    assert [read.batch for read in load_batches(reader, start=1)] == expected[1:]
    assert [read.batch for read in load_batches(reader, workers=2)] == expected
    others = [{"seed": 4, "epoch": 2}, {"seed": 5, "epoch": 1}, {"seed": 5, "epoch": 2, "process": 1, "processes": 2}]
    for other in others:
        assert BatchReader(range(6), draws, plan, **other)[0].batch[-3:] != expected[0][-3:]
    assert len({value for batch in expected for value in batch[-3:]}) == 9


def test_reading_leaves_the_generators_as_they_were():
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    list(load_batches(BatchReader(range(6), draws, [[0, 1], [2]])))
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002


class Damaged:
    """Rows 2 and 4 cannot be read."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        if index in (2, 4):
            raise UnreadableError(f"image 'photo-{index}.png'", "it is cut")
        return index


class DamagedBatches(Damaged):
    def __getitems__(self, indices):
        return [self[index] for index in indices]


@pytest.mark.parametrize("rows", [Damaged(), DamagedBatches()])
def test_unreadable_rows_raise_or_are_skipped_and_told(rows):
    plan = [[0, 2, 3, 4], [2, 4]]
    message = r"row 2 of the data cannot be read: image 'photo-2.png' cannot be read: it is cut"
    with pytest.raises(UnreadableError, match=message):
        BatchReader(rows, list, plan)[0]
    reader = BatchReader(rows, list, plan, skip_unreadable=True)
    batch, unreadable, _ = reader[0]
    assert batch == [0, 3]
    assert len(unreadable) == 2
    assert "photo-4.png" in unreadable[1]
    with pytest.raises(UnreadableError, match="each of the 2 rows of batch 1 cannot be read"):
        reader[1]


def test_a_bug_in_the_data_set_is_not_skipped():
    def broken(rows):
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        BatchReader(range(3), broken, [[0]], skip_unreadable=True)[0]


def test_reads_a_hugging_face_data_set():
    rows = Dataset.from_dict({"id": list(range(6))})
    assert BatchReader(rows, list, [[4, 1]])[0].batch == [{"id": 4}, {"id": 1}]


def test_bad_sizes_are_named():
    with pytest.raises(ArgumentError, match="`batch_size` must be at most the 3 rows of the data, but got 4"):
        RandomBatches(3, 4)
    with pytest.raises(ArgumentError, match="`eval_data` must have a row for each of 3 processes, but got 2"):
        ordered_batches(2, 4, 3)
