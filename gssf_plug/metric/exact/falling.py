r"""Rows of float64 scores from the best down, sorted as whole numbers that carry their own column.

A score is rounded to some 20 bits of its row's range and followed by its column: 32 bits, which vector instructions
sort in half the time of 64, and without a second array to be moved along. Scores that share their 20 bits then stand in
order of column; they are looked up, and neighbours in the wrong order change places, some one in 200. Where scores lie
so close together that these would be many, 64 bits are sorted, which leave an order open only within 10⁻¹² or so; how
close that is, is returned, and near ties are decided elsewhere anyway.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gssf_plug.metric.exact.threads import in_threads

__all__ = ["Apart", "Falling", "RowSorter", "largest", "sort_in_blocks"]

MAGNITUDE = 0x7FFF_FFFF_FFFF_FFFF  # the bits of a float64 but its sign
LEAST_SPREAD = 1e-300  # of a row
MOST_BITS = 20  # of a column, beside 44 of a score
MOST_SHORT_BITS = 13  # of a column, beside 19 of a score
MANY_MOVED = 32  # where a 32nd of the scores stand before a better one, they are sorted anew
PASSES = 8
AROUND = np.array([-1, 0, 1])
SORTED_AT_ONCE = 262_144  # scores that are worth a thread of their own
NARROW = 256  # scores of a row that numpy sorts whole, in registers, sooner than torch chooses from them
CACHED = 131_072  # scores, 1 MB: a thread takes all steps of so many before it takes the next; fewer steps, fewer waits

R = TypeVar("R")
# from the grain, for each row (n×1), how far apart two scores are at least that are not near each other
Apart = Callable[[float], np.ndarray]


class Falling(NamedTuple):
    """The best scores of some rows, falling; overwritten by the next rows.

    Args:
        best: scores as they were given. Two that are closer than grain · 2⁻⁵² times themselves may stand in either
            order.
        columns: theirs.
        near: places, counted through all rows, whose score is hardly more than the next one of its row.
        beyond: how much higher than the last of a row one that was left out may be, but for the grain.
        grain: 0 where the order is that of the scores, and of columns where they are equal.
    """

    best: np.ndarray
    columns: np.ndarray
    near: np.ndarray
    beyond: np.ndarray
    grain: float


class RowSorter:
    """Sorts blocks of rows in memory of its own, which is written again and again, so that it stays in the cache.

    Args:
        rows: most rows of a block.
        size: scores of a row.
    """

    def __init__(self, rows: int, size: int) -> None:
        self.size, self.bits = size, max(1, (size - 1).bit_length())
        self.short_tells = self.bits <= MOST_SHORT_BITS
        self.numbers = np.arange(size, dtype=np.int64)
        self.short_numbers = self.numbers.astype(np.uint32)
        self.starts = np.arange(rows)[:, None] * size
        self.lifted, self.best = np.empty((2, rows * size))
        self.columns, self.places = np.empty((2, rows * size), dtype=np.int64)
        self.short = np.empty((rows, size), dtype=np.uint32)
        self.closer = np.empty(rows * size, dtype=bool)

    def __call__(self, scores: np.ndarray, width: int, apart: Apart) -> Falling:
        """The `width` best of each row.

        Args:
            scores: n×size, float64, rows after rows; -inf stands last.
            width: 1 … size.
            apart: what `near` means.
        """
        found = self._by_short_keys(scores, width, apart(0.0)) if self.short_tells else None
        self.short_tells = found is not None  # rows of one call are alike
        return found if found is not None else self._by_long_keys(scores, width, apart(2.0**self.bits))

    def spare(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Memory that the next rows will overwrite."""
        return self.lifted.view(dtype)[: math.prod(shape)].reshape(shape)

    def _by_short_keys(self, scores: np.ndarray, width: int, apart: np.ndarray) -> Falling | None:
        """By 32 bits; None where they tell too little."""
        high, low = scores.max(axis=1, keepdims=True), scores.min(axis=1, keepdims=True)
        some_out = bool(low.min() == -np.inf)
        if some_out:
            low = scores.min(axis=1, keepdims=True, where=scores > -np.inf, initial=np.inf)
            low, high = (np.where(high == -np.inf, 0.0, each) for each in (low, high))  # a row of none has no range
        spread = high - low
        if not np.isfinite(spread).all():
            return None
        last = 2.0 ** (32 - self.bits) - 2  # behind which those stand that are taken out
        factors = np.divide(last, spread, out=np.full_like(spread, 1.0), where=spread > LEAST_SPREAD)
        count = len(scores)
        lifted, keys = self.lifted.reshape(-1, self.size)[:count], self.short[:count]
        np.subtract(high, scores, out=lifted)  # from the highest down: rising, as the order of columns is
        lifted *= factors
        if some_out:
            np.minimum(lifted, last + 1, out=lifted)
        np.copyto(keys.view(np.int32), lifted, casting="unsafe")  # below 2³¹
        keys <<= self.bits
        keys |= self.short_numbers
        keys = _lowest(keys, width)
        found = self._looked_up(scores, keys, width)
        near = self._in_order(*found, apart)
        if near is None:
            return None
        beyond = 1.01 / factors if width < self.size else np.zeros_like(factors)
        return Falling(*found, near, beyond, 0.0)

    def _by_long_keys(self, scores: np.ndarray, width: int, apart: np.ndarray) -> Falling:
        """By 64 bits: those of the score, the last of which give way to its column."""
        keys = np.negative(scores, out=self.lifted.reshape(-1, self.size)[: len(scores)]).view(np.int64)
        keys ^= (keys >> 63) & MAGNITUDE  # whole numbers in the order of the floats, denormals too where these are off
        keys &= -1 << self.bits
        keys |= self.numbers
        best, columns = self._looked_up(scores, _lowest(keys, width), width)
        near = np.flatnonzero(best[:, :-1] - best[:, 1:] <= apart)  # ∞ − ∞ is near to nothing
        near += near // max(1, width - 1)
        return Falling(best, columns, near, np.zeros((len(scores), 1)), 2.0**self.bits)

    def _looked_up(self, scores: np.ndarray, keys: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
        count, used = len(scores), len(scores) * width
        columns = np.bitwise_and(keys, (1 << self.bits) - 1, out=self.columns[:used].reshape(count, width))
        places = np.add(columns, self.starts[:count], out=self.places[:used].reshape(count, width))
        best = self.best[:used].reshape(count, width)
        np.take(scores.ravel(), places, out=best, mode="clip")  # which is faster than to check
        return best, columns

    def _in_order(self, best: np.ndarray, columns: np.ndarray, apart: np.ndarray) -> np.ndarray | None:
        """Let neighbours that stand in the wrong order change places; which are near then. None where they are many."""
        count, width = best.shape
        if width == 1:
            return self.numbers[:0]
        used = count * (width - 1)
        gaps, closer = (each[:used].reshape(count, width - 1) for each in (self.lifted, self.closer))
        np.less_equal(np.subtract(best[:, :-1], best[:, 1:], out=gaps), apart, out=closer)
        near = np.flatnonzero(closer)
        near += near // (width - 1)
        scores = best.reshape(-1)
        wrong = near[scores[near] < scores[near + 1]]
        if not len(wrong):
            return near
        moved = _let_fall(scores, columns.reshape(-1), wrong, width)
        if moved is None:
            return None
        near = np.concatenate([near, moved])
        near = near[scores[near] - scores[near + 1] <= apart[near // width, 0]]
        return np.unique(near) if len(near) else near


def _let_fall(scores: np.ndarray, columns: np.ndarray, wrong: np.ndarray, width: int) -> np.ndarray | None:
    """Let scores in the wrong order change places with the next; all places around these. None where they are many."""
    looked_at = [wrong]
    for _ in range(PASSES):
        if len(wrong) * MANY_MOVED > scores.size:
            return None
        first = wrong[np.append(True, wrong[1:] - wrong[:-1] > 1)]  # of several in a row
        for each in (scores, columns):
            each[first], each[first + 1] = each[first + 1], each[first]
        around = (wrong[:, None] + AROUND).ravel()
        around = around[(around >= 0) & ((around + 1) % width != 0)]  # the last of a row has nothing behind it
        looked_at.append(around)
        wrong = around[scores[around] < scores[around + 1]]
        if not len(wrong):
            return np.concatenate(looked_at)
        wrong = np.unique(wrong)
    return None


def sort_in_blocks(scores: Float[Tensor, "n m"], work: Callable[[RowSorter, slice, np.ndarray], R]) -> list[R]:
    """What `work` makes of blocks of rows, given a sorter, which rows, and their scores; on several threads."""
    count, size = scores.shape
    given, rows = scores.contiguous().numpy(), max(1, CACHED // max(1, size))
    blocks = [slice(start, min(start + rows, count)) for start in range(0, count, rows)]

    def worker() -> Callable[[slice], R]:
        sorter = RowSorter(min(rows, count), size)

        def run(block: slice) -> R:
            with np.errstate(invalid="ignore", over="ignore"):  # ∞ − ∞; beyond a shorter dtype
                return work(sorter, block, given[block])

        return run

    return in_threads(worker, blocks, min(torch.get_num_threads(), 1 + scores.numel() // SORTED_AT_ONCE))


def _lowest(keys: np.ndarray, width: int) -> np.ndarray:
    """The lowest of each row, rising; the rest is overwritten."""
    if 2 * width <= keys.shape[1]:  # beyond that, sorting all takes less than choosing first
        keys.partition(width - 1, axis=1)
        keys = keys[:, :width]
    keys.sort(axis=1)
    return keys[:, :width]


def largest(scores: Float[Tensor, "n m"], width: int) -> Float[Tensor, "n width"]:
    """The `width` best scores of each row, in any order."""
    if scores.device.type != "cpu" or scores.shape[1] > NARROW:
        return scores.topk(width, dim=1, sorted=False).values
    return torch.from_numpy(np.sort(scores.numpy(), axis=1)[:, -width:])
