"""What every batch sampler of `RetrievalTrainer` must hold, inherited by one test class per sampler.

A subclass makes its sampler over `ROWS` rows.
"""

import torch

from gssf_plug.retrieval.data.batches import BatchSampler, check_batches, plan_epoch

ROWS = 52


class BatchSamplerContract:
    def make(self, *, seed: int = 0) -> BatchSampler:
        raise NotImplementedError

    def plan(self, batches: BatchSampler, epoch: int) -> list[list[int]]:
        return plan_epoch(batches, epoch)

    def test_as_many_batches_as_it_says_in_every_epoch(self) -> None:
        batches = self.make()
        check_batches(batches)
        assert len(batches) > 1
        assert {len(self.plan(batches, epoch)) for epoch in range(4)} == {len(batches)}

    def test_batches_hold_plain_row_numbers_of_one_size(self) -> None:
        plan = self.plan(self.make(), 0)
        assert len({len(batch) for batch in plan}) == 1
        assert all(type(row) is int and 0 <= row < ROWS for batch in plan for row in batch)

    def test_no_row_twice_in_an_epoch(self) -> None:
        rows = [row for batch in self.plan(self.make(), 1) for row in batch]
        assert len(set(rows)) == len(rows)

    def test_every_row_has_its_turn(self) -> None:
        batches = self.make()
        seen = {row for epoch in range(20) for batch in self.plan(batches, epoch) for row in batch}
        assert seen == set(range(ROWS))

    def test_the_order_is_of_seed_and_epoch_alone(self) -> None:
        first, second = self.make(seed=5), self.make(seed=5)
        plans = [self.plan(first, epoch) for epoch in range(3)]
        torch.rand(3)
        assert self.plan(second, 2) == plans[2] == self.plan(second, 2)
        assert plans[0] != plans[1]
        assert self.plan(self.make(seed=6), 0) != plans[0]

    def test_it_leaves_the_global_generator_alone(self) -> None:
        before = torch.get_rng_state()
        self.plan(self.make(), 0)
        assert torch.equal(torch.get_rng_state(), before)
