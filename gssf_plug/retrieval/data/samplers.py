"""Identity-balanced batches: P identities with K images each, which triplet losses need to find positives.

A batch is planned for all processes together, identity after identity, and each process reads its contiguous part: with
P a multiple of the number of processes all images of an identity are on one process, parts are disjoint, and every
process makes the same number of steps. The plan depends on labels, seed and epoch alone, so a resumed run goes on in
the middle of an epoch with the batches it would have had.

Batches of rows of near length: texts are padded to the longest of their batch, and most of that can be saved.

Rows are shuffled first and sorted only within pools of some batches, so a batch is still a random draw of rows of about
its length. With a contrastive loss that makes negatives alike in length; a small pool keeps the effect small.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from gssf_plug.arguments import (
    checked_count,
    checked_epoch,
    checked_flag,
    checked_seed,
    described,
    holds_whole_numbers,
)
from gssf_plug.errors import ArgumentError

__all__ = ["IdentityBatches", "LengthBatches"]


class IdentityBatches:
    """P×K batches for `RetrievalTrainer(batches=...)`, or by `part` for any torch DataLoader.

    In an epoch every identity is cut, in random order, into groups of K images; a batch takes one group of each of P
    identities, those with most groups left first, and the batches are shuffled. That gives the most batches there can
    be, the same number in every epoch. Images that fill no group, and groups that fill no batch, wait for another
    epoch.

    Args:
        labels: identity of every row, as whole numbers.
        identities: number P of identities in a batch, at least 2, since a triplet loss needs a negative.
        images: number K of images of each identity in a batch, at least 2, since it needs a positive.
        seed: seed of the order; default 0.
        resample: what to do with identities of fewer than K images: False (default) refuses them, True repeats some of
            their images in a group (an identity of one image then has only itself as positive).
        processes: number of processes of which each must hold whole identities. Default 1 is right wherever the loss
            gathers features, as RetrievalTrainer's does.

    Raises:
        ArgumentError: P or K is below 2, an identity has fewer than K images, there are fewer than P identities, P is
            no multiple of `processes`, the seed is negative, or labels are no numbers.

    Example:
        >>> batches = IdentityBatches([0, 0, 1, 1, 2, 2], identities=2, images=2)
        >>> len(batches), [len(batch) for batch in batches]
        (1, [4])
    """

    def __init__(
        self,
        labels: Int[Tensor, " rows"] | Sequence[int],
        *,
        identities: int,
        images: int,
        seed: int = 0,
        resample: bool = False,
        processes: int = 1,
    ) -> None:
        remedy = "A triplet needs a positive and a negative; the usual batch is 16 × 4."
        identities = checked_count("identities", identities, remedy, rule="be at least 2", least=2)
        images = checked_count("images", images, remedy, rule="be at least 2", least=2)
        processes, seed = checked_count("processes", processes, "Use 1 or more."), checked_seed(seed)
        resample = checked_flag("resample", resample)
        if identities % processes:
            remedy = "Otherwise an identity is torn apart between two processes."
            raise ArgumentError("identities", f"be a multiple of the {processes} processes", identities, remedy)
        self.identities, self.images, self.seed, self.epoch = identities, images, seed, 0
        self._rows = _rows_of_identities(_as_numbers(labels))
        if not resample:
            _refuse_small(self._rows, images)
        if len(self._rows) < identities:
            raise ArgumentError(
                "identities", f"be at most the {len(self._rows)} identities of the data", identities, "Make it smaller."
            )
        self._groups = {identity: max(1, len(rows) // images) for identity, rows in self._rows.items()}
        self._length = _most_batches(list(self._groups.values()), identities)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch."""
        self.epoch = checked_epoch(epoch)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[list[int]]:
        """The batches of the epoch, P·K row numbers each, identity after identity."""
        random = np.random.default_rng([self.seed, self.epoch])
        waiting = {identity: self._cut(rows, random) for identity, rows in self._rows.items()}
        names = np.array(list(waiting))
        left = np.array([len(waiting[name]) for name in names])
        plan = []
        for _ in range(self._length):
            # the identities with most groups left, ties by chance: else the last batches would lack different ones
            order = np.lexsort((random.random(len(names)), -left))[: self.identities]
            plan.append([row for place in random.permutation(order) for row in waiting[names[place]].pop()])
            # one group each is used up
            left[order] -= 1
        yield from (plan[number] for number in random.permutation(len(plan)))

    def part(self, process: int, processes: int) -> "ProcessPart":
        """The batches of one process, for `DataLoader(batch_sampler=...)`; whole identities only.

        Raises:
            ArgumentError: `process` is outside 0 … processes-1, or P is no multiple of `processes`.
        """
        processes = checked_count("processes", processes, "Give the number of processes.")
        rule, remedy = f"lie in 0 … {processes - 1}", "Give the rank of this process."
        process = checked_count("process", process, remedy, rule=rule, least=0, most=processes - 1)
        if self.identities % processes:
            remedy = "Otherwise an identity is torn apart between two processes."
            raise ArgumentError("processes", f"divide the {self.identities} identities of a batch", processes, remedy)
        return ProcessPart(self, process, processes)

    def _cut(self, rows: list[int], random: np.random.Generator) -> list[list[int]]:
        order = random.permutation(rows).tolist()
        while len(order) < self.images:
            order += random.permutation(rows).tolist()
        # what does not fill a group waits for an epoch that shuffles it elsewhere
        groups = max(1, len(rows) // self.images)
        return [order[self.images * group : self.images * (group + 1)] for group in range(groups)]


class ProcessPart:
    """One process's contiguous part of every batch of `IdentityBatches`.

    Args:
        batches: batch sampler of all processes.
        process: rank of this process.
        processes: number of processes.
    """

    def __init__(self, batches: IdentityBatches, process: int, processes: int) -> None:
        self.batches = batches
        self.rows = batches.identities // processes * batches.images
        self.start = process * self.rows

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch."""
        self.batches.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches:
            yield batch[self.start : self.start + self.rows]


def _as_numbers(labels: Any) -> Tensor:
    try:
        return torch.as_tensor(labels)
    except (OverflowError, RuntimeError, TypeError, ValueError) as error:
        remedy = "Number the identities: sorted(set(labels)).index(label)."
        raise ArgumentError("labels", "hold one whole number per row", type(labels).__name__, remedy) from error


def _rows_of_identities(labels: Int[Tensor, " rows"]) -> dict[int, list[int]]:
    if not holds_whole_numbers(labels) or labels.ndim != 1 or len(labels) == 0:
        rule, remedy = "hold one whole number per row", "Give the identity of every row."
        raise ArgumentError("labels", rule, described(labels), remedy)
    rows: dict[int, list[int]] = {}
    for row, identity in enumerate(labels.tolist()):
        rows.setdefault(identity, []).append(row)
    return rows


def _refuse_small(rows: dict[int, list[int]], images: int) -> None:
    small = [identity for identity, own in rows.items() if len(own) < images]
    if small:
        count = len(rows[small[0]])
        number = "one image" if count == 1 else f"{count} images"
        raise ArgumentError(
            "labels",
            f"give every identity at least images={images} rows",
            f"identity {small[0]} with {number} ({len(small)} such identities)",
            "Leave these out, lower `images`, or repeat their images with resample=True.",
        )


def _most_batches(groups: list[int], identities: int) -> int:
    """The largest L with Σ min(groups, L) ≥ identities · L: so many batches of different identities can be filled."""
    length = 0
    while sum(min(count, length + 1) for count in groups) >= identities * (length + 1):
        length += 1
    return length


class LengthBatches:
    """Every epoch a new order; the last rows that do not fill a batch wait for another epoch.

    Args:
        lengths: length of every row as a whole number, such as its number of tokens.
        batch_size: number of rows in a batch, at most that of all rows.
        pool: number of batches whose rows are sorted by length together; default 20. 1 gives random batches.
        seed: seed of the order; default 0.

    Raises:
        ArgumentError: lengths are no whole numbers, there are fewer rows than a batch holds, or the pool is below 1.

    Example:
        >>> batches = LengthBatches([3, 9, 4, 8], 2)
        >>> sorted(sorted(batch) for batch in batches)
        [[0, 2], [1, 3]]
    """

    def __init__(
        self, lengths: Int[Tensor, " rows"] | Sequence[int], batch_size: int, *, pool: int = 20, seed: int = 0
    ) -> None:
        try:
            self.lengths = np.asarray(lengths)
        except (RuntimeError, TypeError, ValueError):
            rule, remedy = "hold one whole number per row", "Count the tokens of every row."
            raise ArgumentError("lengths", rule, described(lengths), remedy) from None
        if self.lengths.ndim != 1 or not np.issubdtype(self.lengths.dtype, np.integer):
            got = f"{self.lengths.dtype} of shape {self.lengths.shape}"
            raise ArgumentError("lengths", "hold one whole number per row", got, "Count the tokens of every row.")
        if (self.lengths < 0).any():
            got = f"{self.lengths.min()} in row {self.lengths.argmin()}"
            raise ArgumentError("lengths", "be at least 0", got, "Count the tokens of every row.")
        rows = len(self.lengths)
        rule = f"be between 1 and the {rows} rows of the data"
        batch_size = checked_count("batch_size", batch_size, "Make it smaller.", rule=rule, most=rows)
        pool, seed = checked_count("pool", pool, "Use 1 or more."), checked_seed(seed)
        self.batch_size, self.pool, self.seed, self.epoch = batch_size, pool, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch."""
        self.epoch = checked_epoch(epoch)

    def __len__(self) -> int:
        return len(self.lengths) // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        random = np.random.default_rng([self.seed, self.epoch])
        order = random.permutation(len(self.lengths))[: len(self) * self.batch_size]
        size = self.pool * self.batch_size
        pools = [order[start : start + size] for start in range(0, len(order), size)]
        # sorted inside a pool alone: neighbours are of like length, and the order of pools stays random
        near = np.concatenate([pool[np.argsort(self.lengths[pool], kind="stable")] for pool in pools])
        batches = near.reshape(len(self), self.batch_size)
        yield from batches[random.permutation(len(batches))].tolist()
