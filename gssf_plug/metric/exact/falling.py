r"""Rows of float64 scores from the best down, sorted as numbers that carry their own column.

The last bits of a score give way to the number of its column, some 12 of 52: then the numbers themselves are sorted, by
vector instructions and without a second array to be moved along, half as long as an `argsort` takes. Two scores that
lie closer together than these bits may come out in either order; how close that is, is returned, and near ties are
decided elsewhere anyway.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["falling_scores", "largest"]

LARGEST = 1.7e308  # so that no number becomes infinite, whose last bits mean something else
MOST_BITS = 20
FEW = 8  # where an 8th of the scores or less is asked for, choosing comes before sorting
SORTED_AT_ONCE = 262_144  # scores that are worth a thread of their own


def falling_scores(
    scores: Float[Tensor, "n m"], width: int
) -> tuple[Float[Tensor, "n width"], Int[Tensor, "n width"], float]:
    """The `width` best scores of each row, falling, and their columns.

    Args:
        scores: float64; -inf stands last.
        width: how many, 1 … M.

    Returns:
        best: scores as they were given.
        columns: theirs.
        grain: two scores closer together than grain · 2⁻⁵² times the larger of them may stand in either order, and
            others may be taken for those that are that close to the last.
    """
    size = scores.shape[1]
    bits = max(1, (size - 1).bit_length())
    if scores.device.type != "cpu" or width * FEW < size or bits > MOST_BITS or not scores.numel():
        best, columns = scores.topk(width, dim=1)
        return best, columns, 0.0
    keys = scores.neg().clamp_(-LARGEST, LARGEST)  # rising
    numbers = keys.view(torch.int64)
    numbers.bitwise_and_(-1 << bits).bitwise_or_(torch.arange(size))
    _sort_rows(keys, width)
    columns = numbers[:, :width].bitwise_and((1 << bits) - 1)
    return scores.gather(1, columns), columns, 2.0**bits


def largest(scores: Float[Tensor, "n m"], width: int) -> Float[Tensor, "n width"]:
    """The `width` best scores of each row, in any order."""
    if scores.device.type != "cpu":
        return scores.topk(width, dim=1, sorted=False).values
    return torch.from_numpy(np.partition(scores.numpy(), -width, axis=1)[:, -width:])


def _sort_rows(keys: Float[Tensor, "n m"], width: int) -> None:
    """Bring the `width` least of each row to its front, rising."""

    def sort(rows: np.ndarray) -> None:
        if width < rows.shape[1]:
            rows.partition(width - 1, axis=1)
        rows[:, :width].sort(axis=1)

    threads = min(torch.get_num_threads(), len(keys), 1 + keys.numel() // SORTED_AT_ONCE)
    if threads == 1:
        sort(keys.numpy())
        return
    with ThreadPoolExecutor(threads) as pool:  # numpy sorts without Python's lock
        list(pool.map(sort, np.array_split(keys.numpy(), threads)))
