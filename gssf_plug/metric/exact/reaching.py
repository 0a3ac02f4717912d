r"""Where scores reach a bound: one look at most of them, by the largest of every group.

Above zero, floating-point numbers stand in the order of their bits, and processors compare integers several times as
fast as short floats. So a product that was just made is read once, for the largest of every 64 scores; groups whose
largest stays below the bound hold nothing, and only the others are looked at again.
"""

import functools
import math

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

__all__ = [
    "GROUP",
    "at_least",
    "at_least_of",
    "comparable",
    "group_peaks",
    "least_of",
    "lowest_of",
    "places",
    "places_at_least",
    "reaching",
    "reaching_groups",
    "widened",
]

COMPARED_AT_ONCE = 1_048_576  # scores: they and what is made of them stay in the cache
INSIDE_AT_ONCE = 262_144  # scores of chosen groups, the same
GROUP_BITS = 6
GROUP = 1 << GROUP_BITS  # scores whose largest is looked at first
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def group_peaks(scores: Shaped[Tensor, "n m"], size: int = GROUP) -> Shaped[Tensor, "n groups"]:
    """One score of every `size` in a row, the largest where that is above zero; those beyond whole groups are left out.

    Args:
        scores: scores of any float dtype; or whole numbers, of which it is always the largest.
        size: scores in a group.
    """
    whole = scores.shape[1] - scores.shape[1] % size
    groups = scores[:, :whole].view(INTEGERS[scores.dtype.itemsize]).unflatten(1, (-1, size))
    return groups.amax(dim=2).view(scores.dtype)


def reaching(
    scores: Shaped[Tensor, "n m"], least: Shaped[Tensor, " n"], peaks: Shaped[Tensor, "n groups"] | None = None
) -> Int[Tensor, " places"]:
    """Where a score is at least its row's `least`, counted through all rows, ascending.

    Args:
        scores: scores of any float dtype, or whole numbers.
        least: one bound for each row, in the dtype of the scores.
        peaks: peaks from `group_peaks`, where few scores are expected to reach the bounds.
    """
    if peaks is None or not peaks.shape[1] or not bool((least > 0).all()):
        return places_at_least(scores, least[:, None])
    width, whole = scores.shape[1], peaks.shape[1] * GROUP
    high = places(at_least(peaks, least[:, None]))
    rows = high.div(peaks.shape[1], rounding_mode="floor")
    bounds = least.index_select(0, rows)
    found = _inside(scores[:, :whole].unflatten(1, (-1, GROUP)), high, bounds)
    if whole == width:
        return found
    rows = found.div(whole, rounding_mode="floor")
    rest, column = (scores[:, whole:] >= least[:, None]).nonzero(as_tuple=True)
    return torch.cat([found.add_(rows * (width - whole)), rest * width + (whole + column)]).sort().values


def reaching_groups(
    sums: Int[Tensor, "n m"], least: Int[Tensor, "n groups"], peaks: Int[Tensor, "n groups"]
) -> Int[Tensor, " places"]:
    """Where whole numbers, in whole groups, are at least what their row asks of their group; counted as above.

    Args:
        sums: contiguous.
        least: one bound for each row and group.
        peaks: peaks from `group_peaks`.
    """
    high = places(at_least(peaks, least))
    return _inside(sums.unflatten(1, (-1, GROUP)), high, least.flatten().index_select(0, high))


def _inside(
    scores: Shaped[Tensor, "n groups size"], high: Int[Tensor, " some"], least: Shaped[Tensor, " some"]
) -> Int[Tensor, " places"]:
    """Where scores in some groups, counted through all rows, are at least the bound of their group."""
    together, size = scores.is_contiguous(), INSIDE_AT_ONCE // GROUP
    table, count = scores.view(-1, GROUP) if together else scores, scores.shape[1]
    scratch = table.new_empty(min(size, len(high)), GROUP)  # written again and again: it stays in the cache
    found = [high[:0]]
    for some, bounds in zip(high.split(size), least.split(size), strict=True):
        if together:
            groups = torch.index_select(table, 0, some, out=scratch[: len(some)])
        else:  # rows end in scores that are in no group
            row = some.div(count, rounding_mode="floor")
            groups = table[row, some - row * count]
        hits = places(at_least(groups, bounds[:, None]))
        which = hits >> GROUP_BITS
        found.append(some.index_select(0, which).sub_(which).mul_(GROUP).add_(hits))
    return torch.cat(found)


def places_at_least(scores: Shaped[Tensor, "n m"], *least: Shaped[Tensor, "..."]) -> Int[Tensor, " places"]:
    """Where a score is at least one of several bounds, counted through all rows, ascending.

    Args:
        scores: scores of any float dtype, or whole numbers.
        least: bounds in that dtype, each with one value per row (N×1) or per column (1×M).
    """
    if scores.device.type != "cpu":
        return places(functools.reduce(torch.logical_or, [scores >= one for one in least]))
    width, size = scores.shape[1], max(1, COMPARED_AT_ONCE // max(1, scores.shape[1]))
    table, bounds = comparable(scores), [comparable(one) for one in least]
    found = []
    for start in range(0, max(1, len(scores)), size):  # what is compared is in the cache when it is compared again
        rows = slice(start, start + size)
        masks = [at_least_of(table[rows], one if len(one) == 1 else one[rows]) for one in bounds]
        found.append(np.flatnonzero(functools.reduce(np.logical_or, masks)) + start * width)
    return torch.from_numpy(np.concatenate(found))


def at_least(scores: Shaped[Tensor, "n m"], least: Shaped[Tensor, "..."]) -> Bool[Tensor, "n m"]:
    """`scores >= least`, for one bound per score, per row (N×1) or per column (1×M)."""
    if scores.device.type != "cpu":
        return scores >= least
    return torch.from_numpy(at_least_of(comparable(scores), comparable(least)))


def widened(values: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """What `comparable` made of scores of a dtype, as numbers in float32 or float64."""
    if dtype == torch.bfloat16:  # the first half of a float32
        return (values.astype(np.int32) << 16).view(np.float32)
    if dtype == torch.int32:
        return values.astype(np.float32)
    return values.view(np.float16).astype(np.float32) if dtype == torch.float16 else values


def lowest_of(dtype: torch.dtype) -> float:
    """What reaches no bound, among scores or whole numbers of a dtype."""
    return -math.inf if dtype.is_floating_point else torch.iinfo(dtype).min


def least_of(bounds: Float[Tensor, "..."], dtype: torch.dtype) -> Shaped[Tensor, "..."]:
    """Bounds that are themselves of the dtype of what is compared with them: as they are, or down to whole numbers."""
    if dtype.is_floating_point:
        return bounds
    return bounds.double().clamp(lowest_of(dtype) + 1, torch.iinfo(dtype).max).to(dtype)


def comparable(values: Shaped[Tensor, "..."]) -> np.ndarray:
    """As an array without a copy: short floats, which numpy compares slowly or not at all, as their bits."""
    return (values.view(torch.int16) if values.dtype.itemsize == 2 else values).numpy()


def at_least_of(scores: np.ndarray, least: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """The same of what `comparable` made of them."""
    mask = np.greater_equal(scores, least, out=out)
    if scores.dtype != np.int16:
        return mask
    rows, columns = np.nonzero(least <= 0)  # of bits: zero, or below
    if not len(rows):
        return mask
    own = (
        slice(None) if len(least) == 1 else rows,  # one bound for all rows, or
        slice(None) if least.shape[1] == 1 else columns,  # for all columns
    )
    # both zeros reach a bound of zero
    mask[own] = _in_order(scores[own]) >= np.minimum(_in_order(least[own]), -1)
    return mask


def _in_order(bits: np.ndarray) -> np.ndarray:
    """Bits of short floats as whole numbers in the order of the floats; -0.0 as -1, just below 0."""
    return bits ^ ((bits >> 15) & 0x7FFF)


def places(mask: Bool[Tensor, "..."]) -> Int[Tensor, " places"]:
    """Where a mask is True, counted through all rows; numpy finds it several times as fast on a CPU."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.flatten().nonzero()[:, 0]
