r"""How many scores reach each of a row's positives: counted where the fast score is certain, listed where it is not.

Scores below the lowest positive are not looked at again. The others fall into bins of equal width, some thousand per
row; a bin that the bounds of no positive touch is certain, and so costs one number. What lies in the other bins is
compared by a closer score with its own bounds (`certain_pairs`), and what even that leaves open is given back.
"""

import math

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from gssf_plug.metric.exact.fast_scores import Open
from gssf_plug.metric.exact.reaching import at_least_of, comparable, least_of, places, reaching, widened
from gssf_plug.metric.exact.threads import in_threads, slices

__all__ = ["certain_counts", "certain_pairs", "count_in_order", "count_reaching", "from_the_right"]

BINS = 1024  # bin 0 lies below all positives
USUALLY_REACH = 4  # one score in so many, or fewer
COUNTED_AT_ONCE = 1_048_576  # scores: what counting makes of more would leave the cache
WORTH_A_THREAD = 262_144  # scores
SAMPLED = 97  # one score in so many says how many reach
MOST_REACH = 0.4
FEW_REACH = 64  # scores of a row that are listed at less cost than its bins
DIRECT = 16_384  # comparisons of one row that cost less than its bins


def certain_counts(
    fast: Shaped[Tensor, "n m"],
    low: Float[Tensor, "n most"],
    high: Float[Tensor, "n most"],
    peaks: Shaped[Tensor, "n groups"] | None = None,
) -> tuple[Int[Tensor, "n most"], Int[Tensor, " open"]]:
    """How many scores of its row are certainly at least each positive, and where those stand that decide more.

    Args:
        fast: scores, or whole numbers in 32 bits that stand for them; the least that there is takes one out.
        low: per positive, in any order, what lies below it is certainly less; infinity where there is no positive.
        high: bound above which a score is certainly more.
        peaks: peaks from `group_peaks`, where few scores are expected to reach the least `low`.
    """
    least = least_of(low.amin(1), fast.dtype)
    if peaks is not None or fast.shape[1] <= FEW_REACH:
        at = reaching(fast, least, peaks)
        if len(at) <= FEW_REACH * len(fast):
            return torch.zeros_like(low, dtype=torch.long), at
    if fast.device.type != "cpu":
        return _binned(fast, low, high, None if _most_reach(fast, least) else reaching(fast, least))
    # a row's bins take room, however few its scores
    blocks = slices(len(fast), COUNTED_AT_ONCE // max(BINS, fast.shape[1])) or [slice(0, 0)]
    threads = min(torch.get_num_threads(), 1 + fast.numel() // WORTH_A_THREAD)
    found = in_threads(lambda: _Counter(fast, least, low, high, blocks[0].stop), blocks, threads)
    counts, open_places = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return torch.from_numpy(counts), torch.from_numpy(open_places)


class _Counter:
    """`_binned` of some rows after others, by one thread: numpy works without Python's lock.

    Args:
        fast: all scores.
        least: the lowest bound of every row.
        low: bounds of all rows.
        high: the upper ones.
        rows: rows at once, whose scores fit the cache; memory for these is written again and again.
    """

    def __init__(
        self,
        fast: Shaped[Tensor, "n m"],
        least: Shaped[Tensor, " n"],
        low: Float[Tensor, "n most"],
        high: Float[Tensor, "n most"],
        rows: int,
    ) -> None:
        self.scores, self.least = comparable(fast), comparable(least[:, None])
        wide = torch.promote_types(fast.dtype, torch.float32)
        self.dtype, self.low, self.high = fast.dtype, low.to(wide).numpy(), high.to(wide).numpy()
        self.reached = np.empty((rows, fast.shape[1]), dtype=bool)
        self.taken = np.empty(self.reached.size // USUALLY_REACH, dtype=self.scores.dtype)
        self.keys = np.empty(len(self.taken), dtype=np.int32)

    def __call__(self, own: slice) -> tuple[np.ndarray, np.ndarray]:
        """Counts of a row's positives, and the open places, counted through all rows."""
        scores, low, high = self.scores[own], self.low[own], self.high[own]
        count, width = scores.shape
        reached = at_least_of(scores, self.least[own], out=self.reached[:count])
        at, asked = np.flatnonzero(reached), low < math.inf
        floor, top = float(low.min(initial=math.inf)), float(high.max(initial=-math.inf, where=asked))
        grid = (BINS - 3) / max(top - floor, 1e-300) if math.isfinite(top - floor) else 0.0
        if not 0.0 < grid < 1e30:
            return np.zeros(low.shape, dtype=np.int64), at + own.start * width

        def bins(values: np.ndarray, out: np.ndarray) -> np.ndarray:
            """Each step keeps the order of scores, or makes neighbours equal; the values are overwritten."""
            with np.errstate(over="ignore", invalid="ignore"):
                values -= floor
                values *= grid
                values += 1
                out[...] = np.clip(values, 0, BINS - 1, out=values)
            return out

        if len(at) > len(self.taken):
            self.taken, self.keys = np.empty(len(at), dtype=self.taken.dtype), np.empty(len(at), dtype=np.int32)
        taken = np.take(scores.reshape(-1), at, out=self.taken[: len(at)], mode="clip")
        key = bins(widened(taken, self.dtype), self.keys[: len(at)])
        starts = np.arange(0, count * BINS, BINS, dtype=np.int32)  # of each row, in one table of bins
        key += np.repeat(starts, np.diff(np.searchsorted(at, np.arange(count + 1) * width)))
        first, last = (bins(bound.copy(), np.empty(bound.shape, np.int32)) + starts[:, None] for bound in (low, high))
        edges = np.bincount(first[asked], minlength=count * BINS + 1)
        edges -= np.bincount(last[asked] + 1, minlength=count * BINS + 1)
        touched = edges[:-1].cumsum() > 0  # between the bounds of a positive; what begins in a row ends in it
        sure = np.bincount(key, minlength=count * BINS)
        sure[touched] = 0
        above = sure.reshape(count, BINS).cumsum(axis=1)
        counts = above[:, -1:] - np.take_along_axis(above, last - starts[:, None], axis=1)
        counts[~asked] = 0
        return counts, at[np.flatnonzero(np.take(touched, key, mode="clip"))] + own.start * width


def _binned(
    fast: Shaped[Tensor, "n m"],
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


def _most_reach(fast: Shaped[Tensor, "n m"], least: Shaped[Tensor, " n"]) -> bool:
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


def count_in_order(own: Float[Tensor, "n most"], scores: Float[Tensor, "n m"]) -> Int[Tensor, "n most"]:
    """The same by sorting every row of scores, in place: it costs as much however many are equal."""
    if scores.device.type == "cpu":
        table = scores.numpy()
        blocks = slices(len(scores), COUNTED_AT_ONCE // max(1, scores.shape[1]))
        in_threads(lambda: lambda rows: table[rows].sort(axis=1), blocks, torch.get_num_threads())
    else:
        scores = scores.sort(dim=1).values
    return scores.shape[1] - torch.searchsorted(scores, own.contiguous())


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
