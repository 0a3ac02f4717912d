"""Batches of rows of near length: texts are padded to the longest of their batch, and most of that can be saved.

Rows are shuffled first and sorted only within pools of some batches, so a batch is still a random draw of rows of about
its length. With a contrastive loss that makes negatives alike in length; a small pool keeps the effect small.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int
from torch import Tensor

from gssf_plug.errors import ArgumentError

__all__ = ["LengthBatches"]


class LengthBatches:
    """Every epoch a new order; the last rows that do not fill a batch wait for another epoch.

    Args:
        lengths: of every row, such as its number of tokens.
        batch_size: rows of a batch, at most the number of rows.
        pool: batches that are sorted by length together; default 20. 1 gives random batches.
        seed: of the order.

    Raises:
        ArgumentError: lengths that are no whole numbers, fewer rows than a batch, a pool below 1.

    Example:
        >>> batches = LengthBatches([3, 9, 4, 8], 2)
        >>> sorted(sorted(batch) for batch in batches)
        [[0, 2], [1, 3]]
    """

    def __init__(
        self, lengths: Int[Tensor, " rows"] | Sequence[int], batch_size: int, *, pool: int = 20, seed: int = 0
    ) -> None:
        self.lengths = np.asarray(lengths)
        if self.lengths.ndim != 1 or not np.issubdtype(self.lengths.dtype, np.integer):
            got = f"{self.lengths.dtype} of shape {self.lengths.shape}"
            raise ArgumentError("lengths", "hold one whole number per row", got, "Count the tokens of every row.")
        rows = len(self.lengths)
        if not 1 <= batch_size <= rows:
            remedy = "Make it smaller."
            raise ArgumentError("batch_size", f"be between 1 and the {rows} rows of the data", batch_size, remedy)
        for name, value, least in (("pool", pool, 1), ("seed", seed, 0)):
            if value < least:
                raise ArgumentError(name, f"be at least {least}", value, f"Use {least} or more.")
        self.batch_size, self.pool, self.seed, self.epoch = batch_size, pool, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths) // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        random = np.random.default_rng([self.seed, self.epoch])
        order = random.permutation(len(self.lengths))[: len(self) * self.batch_size]
        size = self.pool * self.batch_size
        pools = [order[start : start + size] for start in range(0, len(order), size)]
        near = np.concatenate([pool[np.argsort(self.lengths[pool], kind="stable")] for pool in pools])
        batches = near.reshape(len(self), self.batch_size)
        yield from batches[random.permutation(len(batches))].tolist()
