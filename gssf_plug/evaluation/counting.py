r"""How many scores reach each of a row's positives: counted where the fast score is certain, listed where it is not.

Scores below the lowest positive are not looked at again. The others fall into bins of equal width, some thousand per
row; a bin that the bounds of no positive touch is certain, and so costs one number. What lies in the other bins is
compared by a closer score with its own bounds (`certain_pairs`), and what even that leaves open is given back.
"""

import math

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gssf_plug.metric.exact.fast_scores import Open
from gssf_plug.metric.exact.reaching import places, reaching

__all__ = ["certain_counts", "certain_pairs", "count_reaching", "from_the_right"]

BINS = 1024  # bin 0 lies below all positives
COUNTED_AT_ONCE = 2_097_152  # scores: what counting makes of more would leave the cache
SAMPLED = 97  # one score in so many says how many reach
MOST_REACH = 0.4
FEW_REACH = 64  # scores of a row that are listed at less cost than its bins
DIRECT = 16_384  # comparisons of one row that cost less than its bins


def certain_counts(
    fast: Float[Tensor, "n m"],
    low: Float[Tensor, "n most"],
    high: Float[Tensor, "n most"],
    peaks: Float[Tensor, "n groups"] | None = None,
) -> tuple[Int[Tensor, "n most"], Int[Tensor, " open"]]:
    """How many scores of its row are certainly at least each positive, and where those stand that decide more.

    Args:
        fast: scores; -inf takes one out.
        low: per positive, in any order, what lies below it is certainly less; infinity where there is no positive.
        high: bound above which a score is certainly more.
        peaks: peaks from `group_peaks`, where few scores are expected to reach the least `low`.
    """
    if peaks is not None:
        at = reaching(fast, low.amin(1), peaks)
        few = len(at) <= FEW_REACH * len(fast)
        return (torch.zeros_like(low, dtype=torch.long), at) if few else _binned(fast, low, high, at)
    counts, found = [], []
    size = max(1, COUNTED_AT_ONCE // max(1, fast.shape[1]))
    for number, piece in enumerate(fast.split(size)):
        own = slice(number * size, number * size + size)
        least = low[own].amin(1)
        sure, at = _binned(piece, low[own], high[own], None if _most_reach(piece, least) else reaching(piece, least))
        counts.append(sure)
        found.append(at.add_(own.start * fast.shape[1]))
    return torch.cat(counts), torch.cat(found)


def _binned(
    fast: Float[Tensor, "n m"],
    low: Float[Tensor, "n most"],
    high: Float[Tensor, "n most"],
    at: Int[Tensor, " reached"] | None,
) -> tuple[Int[Tensor, "n most"], Int[Tensor, " open"]]:
    """The same by bins of the scores that reach the lowest positive, or of all of them where `at` is None."""
    asked, counts = low < math.inf, torch.zeros_like(low, dtype=torch.long)
    floor = float(low.min())
    top = float(high[asked].max()) if bool(asked.any()) else -math.inf
    grid = (BINS - 3) / max(top - floor, 1e-300) if math.isfinite(top - floor) else 0.0
    if not 0.0 < grid < 1e30:
        return counts, reaching(fast, low.amin(1)) if at is None else at
    # each step keeps the order of scores (or makes neighbours equal), so whole bins lie above one another
    wide = torch.promote_types(fast.dtype, torch.float32)

    def bins(scores: Tensor) -> Int[Tensor, "..."]:
        return scores.to(wide, copy=True).sub_(floor).mul_(grid).add_(1).clamp_(0, BINS - 1).to(torch.int32)

    first, last = bins(low).long(), bins(high).long()
    edges = torch.zeros(len(fast), BINS + 1, dtype=torch.int32, device=fast.device)
    edges.scatter_add_(1, first, asked.int()).scatter_add_(1, last + 1, -asked.int())
    touched = edges.cumsum(1)[:, :BINS] > 0  # between the bounds of a positive
    row_of = torch.arange(0, len(fast) * BINS, BINS, dtype=torch.int32, device=fast.device)
    if at is None:
        key = bins(fast).add_(row_of[:, None]).flatten()
    else:
        starts = torch.arange(len(fast) + 1, device=fast.device) * fast.shape[1]
        reached = torch.searchsorted(at, starts).diff()  # scores of each row
        key = bins(fast.take(at))
        key += torch.repeat_interleave(row_of, reached, output_size=len(at))
    sure = torch.bincount(key, minlength=len(fast) * BINS).view(len(fast), BINS).masked_fill_(touched, 0).cumsum(1)
    counts = (sure[:, -1:] - sure.gather(1, last)).masked_fill_(~asked, 0)
    open_places = places(touched.flatten().index_select(0, key))
    return counts, open_places if at is None else at.index_select(0, open_places)


def _most_reach(fast: Float[Tensor, "n m"], least: Float[Tensor, " n"]) -> bool:
    """Whether a list of those that reach the bounds would cost more than it spares, by one score in some hundred."""
    return float((fast[:, ::SAMPLED] >= least[:, None]).double().mean()) > MOST_REACH


def certain_pairs(
    scores: Open,
    rows: Int[Tensor, " pairs"],
    low: Float[Tensor, "n most"],
    high: Float[Tensor, "n most"],
) -> tuple[Int[Tensor, "n most"], Int[Tensor, " open"]]:
    """For each ascending positive of a row how many of its pairs are certainly at least that; and which stay open.

    Args:
        scores: between what each pair's score lies.
        rows: row of each pair.
        low: between what the positives lie, ascending, padded with infinity.
        high: the same from above.
    """
    count, most = low.shape
    width = 1 << most.bit_length()
    # binary search of all pairs at once: a row's bins begin at row · width, and `bins` walks from there
    steps = torch.nn.functional.pad(low, (0, width - most), value=math.inf).flatten()
    bins = rows * width
    while (width := width // 2) > 0:
        bins.add_(steps.index_select(0, bins + (width - 1)) <= scores.high, alpha=width)
    # certain is what lies above the upper bound, too, of the last positive whose lower bound it may have passed
    ceiling = torch.nn.functional.pad(high, (1, len(steps) // count - most - 1), value=-math.inf).flatten()
    is_open = scores.low <= ceiling.index_select(0, bins)
    counts = torch.bincount(bins[~is_open], minlength=len(steps))
    return from_the_right(counts.view(count, -1), most), places(is_open)


def count_reaching(own: Float[Tensor, "n most"], scores: Float[Tensor, "n m"]) -> Int[Tensor, "n most"]:
    """For each of a row's ascending `own`, padded with infinity, how many of its scores are at least as high."""
    asked = own < math.inf
    width = scores.shape[1]
    if own.device.type == "cpu" and int(asked.sum()) * width <= len(own) * (DIRECT + 2 * width):
        return _compared(own, asked, scores)
    counts, at = certain_counts(scores, own, own)
    rows = at.div(width, rounding_mode="floor")
    values = scores.flatten().index_select(0, at)
    # the bound above is left out: equal scores reach
    return counts + certain_pairs(Open(torch.full_like(values, torch.inf), values), rows, own, own)[0]


def _compared(
    own: Float[Tensor, "n most"], asked: Bool[Tensor, "n most"], scores: Float[Tensor, "n m"]
) -> Int[Tensor, "n most"]:
    """The same by comparing each of them with its whole row; numpy counts several times as fast on a CPU."""
    counts = torch.zeros_like(own, dtype=torch.long)
    for column in range(own.shape[1]):
        rows = asked[:, column].nonzero()[:, 0]
        part = scores if len(rows) == len(scores) else scores.index_select(0, rows)
        reached = part.numpy() >= own[:, column].index_select(0, rows)[:, None].numpy()
        counts[rows, column] = torch.from_numpy(np.count_nonzero(reached, axis=1))
    return counts


def from_the_right(bins: Int[Tensor, "n bins"], most: int) -> Int[Tensor, "n most"]:
    """What lies in each bin of a row or above it, the bin below all positives left out."""
    return bins.flip(1).cumsum(1).flip(1)[:, 1 : most + 1]
