r"""Rows of float64 scores from the best down, sorted as numbers that carry their own column.

The last bits of a score give way to the number of its column, some 12 of 52: then the numbers themselves are sorted, by
vector instructions and without a second array to be moved along, half as long as an `argsort` takes. The bits do not
come back: to look them up in the given scores would take as long again. So two scores that lie closer together may come
out in either order; how close that is, is returned, and near ties are decided elsewhere anyway.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["falling_scores", "largest"]

LARGEST = 1.7e308  # so that no number becomes infinite, whose last bits mean something else
TINIEST = 5e-324
MOST_BITS = 20
FEW = 8  # where an 8th of the scores or less is asked for, choosing comes before sorting
SORTED_AT_ONCE = 262_144  # scores that are worth a thread of their own
NARROW = 256  # scores of a row that numpy sorts whole, in registers, sooner than torch chooses from them
CACHED = 65_536  # scores: 512 kB, in which a thread takes all steps of some rows before it takes the next


def falling_scores(
    scores: Float[Tensor, "n m"], width: int
) -> tuple[Float[Tensor, "n width"], Int[Tensor, "n width"], float]:
    """The `width` best scores of each row, falling, and their columns.

    Args:
        scores: float64; -inf stands last.
        width: how many, 1 … M.

    Returns:
        best: scores, each nearer to zero than it was given by less than grain · 2⁻⁵² times itself.
        columns: theirs. Two scores that are closer together than that may stand in either order, and others may be
            taken for those that are that close to the last.
        grain: 0 where scores are as they were given.
    """
    count, size = scores.shape
    bits = max(1, (size - 1).bit_length())
    choose = scores.device.type != "cpu" or width * FEW < size or bits > MOST_BITS or not scores.numel()
    if choose or TINIEST * float(width) == 0.0:  # `torch.set_flush_denormal`: a zero could not carry its column
        best, columns = scores.topk(width, dim=1)
        return best, columns, 0.0
    given, numbers, mask = scores.numpy(), np.arange(size), (1 << bits) - 1
    best, columns = scores.new_empty(count, width), torch.empty(count, width, dtype=torch.long)

    def fall(some: np.ndarray) -> None:
        rows = slice(some[0], some[-1] + 1)
        keys = np.clip(-given[rows], -LARGEST, LARGEST)  # rising
        whole = keys.view(np.int64)
        whole &= ~mask
        whole |= numbers
        if 2 * width <= size:  # beyond that, sorting all takes less than choosing first
            keys.partition(width - 1, axis=1)
            keys[:, :width].sort(axis=1)
        else:
            keys.sort(axis=1)
        np.bitwise_and(whole[:, :width], mask, out=columns[rows].numpy())
        whole &= ~mask
        found = np.negative(keys[:, :width], out=best[rows].numpy())
        if found[:, 0].max() > LARGEST / 2 or found[:, -1].min() < -LARGEST / 2:  # which was infinite
            found[np.abs(found) > LARGEST / 2] *= np.inf

    blocks = np.array_split(np.arange(count), -(-count // max(1, CACHED // size)))
    threads = min(torch.get_num_threads(), len(blocks), 1 + scores.numel() // SORTED_AT_ONCE)
    if threads == 1:
        list(map(fall, blocks))
    else:
        with ThreadPoolExecutor(threads) as pool:  # numpy works without Python's lock
            list(pool.map(fall, blocks))
    return best, columns, 2.0**bits


def largest(scores: Float[Tensor, "n m"], width: int) -> Float[Tensor, "n width"]:
    """The `width` best scores of each row, in any order."""
    if scores.device.type != "cpu" or scores.shape[1] > NARROW:
        return scores.topk(width, dim=1, sorted=False).values
    return torch.from_numpy(np.sort(scores.numpy(), axis=1)[:, -width:])
