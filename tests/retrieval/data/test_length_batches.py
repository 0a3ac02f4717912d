"""Batches by length: every row once, little padding, the same plan for seed and epoch, everything bad refused."""

import pytest
import torch
from retrieval import toy

from gssf_plug.errors import ArgumentError
from gssf_plug.retrieval import LengthBatches

LENGTHS = torch.randint(4, 60, (107,), generator=torch.Generator().manual_seed(0))


def padding(batches):
    return sum(int((LENGTHS[batch].max() - LENGTHS[batch]).sum()) for batch in batches)


def test_every_row_at_most_once_and_whole_batches():
    batches = LengthBatches(LENGTHS, 10, pool=4)
    plan = list(batches)
    assert len(plan) == len(batches) == 10
    assert all(len(batch) == 10 for batch in plan)
    assert len({row for batch in plan for row in batch}) == 100


def test_pools_save_padding():
    plain, pooled, sorted_whole = (padding(LengthBatches(LENGTHS, 10, pool=pool)) for pool in (1, 4, 10))
    assert sorted_whole < 0.3 * plain
    assert sorted_whole < pooled < 0.6 * plain


def test_a_new_order_each_epoch_of_seed_and_epoch_alone():
    first, second = LengthBatches(LENGTHS, 10, seed=3), LengthBatches(LENGTHS.tolist(), 10, seed=3)
    torch.rand(2)
    assert list(first) == list(second) == list(first)
    second.set_epoch(1)
    assert list(second) != list(first)
    assert list(LengthBatches(LENGTHS, 10, seed=4)) != list(first)
    lengths = [max(LENGTHS[batch]) for batch in first]
    assert lengths != sorted(lengths), "short batches must not come first"


def test_trains(tmp_path):
    trainer = toy.trainer(tmp_path, changes={"epochs": 1}, batches=LengthBatches([row % 7 for row in range(46)], 9))
    assert trainer.train().step == 3


@pytest.mark.bad_input
class TestBadInput:
    def test_lengths(self):
        with pytest.raises(ArgumentError, match="`lengths` must hold one whole number per row, but got float"):
            LengthBatches([1.5, 2.0], 1)

    @pytest.mark.parametrize("batch_size", [0, 4])
    def test_batch_size(self, batch_size):
        with pytest.raises(ArgumentError, match=f"`batch_size` must be between 1 and the 3 rows.*got {batch_size}"):
            LengthBatches([1, 2, 3], batch_size)

    def test_pool_and_seed(self):
        with pytest.raises(ArgumentError, match="`pool` must be at least 1, but got 0"):
            LengthBatches([1, 2, 3], 1, pool=0)
        with pytest.raises(ArgumentError, match="`seed` must be at least 0, but got -1"):
            LengthBatches([1, 2, 3], 1, seed=-1)
