"""Batches of known pairs, the same for every candidate: who meets whom, and what is known of them.

A batch is drawn from the pairs; every pair known among its items counts, so there are no false negatives among known
pairs. What is known of a batch is listed once and kept for the next candidate, as far as that stays small.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from gssf_plug.losses.score_gradients import ListedPairs
from gssf_plug.retrieval.fitting.splits import Part

__all__ = ["Batch", "Batches"]

KEPT_NUMBERS = 8_388_608  # whole numbers in the batches that are kept: 64 MB


class Batch(NamedTuple):
    """Different queries and different documents, as rows of their sides, and what is known of them."""

    queries: Int[Tensor, " n"]
    documents: Int[Tensor, " m"]
    pairs: ListedPairs


class Batches:
    """Batches of one part; every pair comes once an epoch.

    Args:
        part: part that the batches are drawn from.
        size: number of pairs in a batch.
        seed: seed of the order.
    """

    def __init__(self, part: Part, size: int, seed: int) -> None:
        self.part, self.size, self.seed = part, size, seed
        places, self._items = part.pairs.select(part.rows)
        self._rows = part.rows[places]
        self._column_of = torch.full((len(part.documents),), -1)
        self._kept: list[Batch] = []
        self._numbers = 0

    @property
    def pairs(self) -> int:
        """Number of pairs of the whole part."""
        return len(self._rows)

    def first(self, steps: int) -> Iterator[Batch]:
        """So many batches, from the first epoch on; the same ones each time."""
        if self.pairs <= self.size:  # every batch is the same
            whole = self._batch(self._rows, self._items)
            yield from (whole for _ in range(steps))
            return
        generator, step = torch.Generator().manual_seed(self.seed), 0
        while step < steps:
            for chosen in torch.randperm(self.pairs, generator=generator).split(self.size)[: steps - step]:
                if step < len(self._kept):
                    yield self._kept[step]
                else:
                    yield self._keep(step, self._batch(self._rows[chosen], self._items[chosen]))
                step += 1

    def _keep(self, step: int, batch: Batch) -> Batch:
        self._numbers += sum(part.numel() for part in (batch.queries, batch.documents, *batch.pairs))
        if step == len(self._kept) and self._numbers <= KEPT_NUMBERS:
            self._kept.append(batch)
        return batch

    def _batch(self, rows: Int[Tensor, " p"], items: Int[Tensor, " p"]) -> Batch:
        queries, documents = rows.unique(), items.unique()
        device = self.part.documents.device
        known = self.part.known(queries, documents, self._column_of).to(device)
        return Batch(queries.to(device), documents.to(device), known)
