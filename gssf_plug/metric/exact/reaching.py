r"""Where scores reach a bound: one look at most of them, by the largest of every group.

Above zero, floating-point numbers stand in the order of their bits, and processors compare integers several times as
fast as short floats. So a product that was just made is read once, for the largest of every 64 scores; groups whose
largest stays below the bound hold nothing, and only the others are looked at again.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["GROUP", "at_least", "group_peaks", "places", "reaching"]

GROUP = 64  # scores whose largest is looked at first
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def group_peaks(scores: Float[Tensor, "n m"], size: int = GROUP) -> Float[Tensor, "n groups"]:
    """One score of every `size` in a row, the largest where that is above zero; those beyond whole groups are left out.

    Args:
        scores: of any float dtype.
        size: scores in a group.
    """
    whole = scores.shape[1] - scores.shape[1] % size
    groups = scores[:, :whole].view(INTEGERS[scores.dtype.itemsize]).unflatten(1, (-1, size))
    return groups.amax(dim=2).view(scores.dtype)


def reaching(
    scores: Float[Tensor, "n m"], least: Float[Tensor, " n"], peaks: Float[Tensor, "n groups"] | None = None
) -> Int[Tensor, " places"]:
    """Where a score is at least its row's `least`, counted through all rows, ascending.

    Args:
        scores: of any float dtype.
        least: one bound for each row, in the dtype of the scores.
        peaks: of `group_peaks`, where few scores are expected to reach the bounds.
    """
    if peaks is None or not peaks.shape[1] or not bool((least > 0).all()):
        return places(at_least(scores, least[:, None]))
    width, whole = scores.shape[1], peaks.shape[1] * GROUP
    high = places(at_least(peaks, least[:, None]))
    rows = high.div(peaks.shape[1], rounding_mode="floor")
    if whole == width and scores.is_contiguous():
        groups = scores.view(-1, GROUP).index_select(0, high)
        first = high * GROUP
    else:
        group = high - rows * peaks.shape[1]
        groups = scores[:, :whole].unflatten(1, (-1, GROUP))[rows, group]
        first = rows * width + group * GROUP
    hits = places(at_least(groups, least.index_select(0, rows)[:, None]))
    which = hits.div(GROUP, rounding_mode="floor")
    found = first.index_select(0, which).add_(hits.sub_(which * GROUP))
    if whole == width:
        return found
    rest, column = (scores[:, whole:] >= least[:, None]).nonzero(as_tuple=True)
    return torch.cat([found, rest * width + (whole + column)]).sort().values


def at_least(scores: Float[Tensor, "n m"], least: Float[Tensor, "..."]) -> Bool[Tensor, "n m"]:
    """`scores >= least`, for one bound per row (N×1) or per column (1×M)."""
    if scores.device.type != "cpu" or scores.dtype.itemsize != 2:
        return scores >= least
    bits = (one.view(torch.int16).numpy() for one in (scores, least))
    mask = torch.from_numpy(np.greater_equal(*bits))
    rows, columns = (least <= 0).nonzero(as_tuple=True)
    if len(rows) and least.shape[1] == scores.shape[1]:
        mask[:, columns] = scores[:, columns] >= least[:, columns]
    elif len(rows):
        mask[rows] = scores[rows] >= least[rows]
    return mask


def places(mask: Bool[Tensor, "..."]) -> Int[Tensor, " places"]:
    """Where a mask is True, counted through all rows; numpy finds it several times as fast on a CPU."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.flatten().nonzero()[:, 0]
