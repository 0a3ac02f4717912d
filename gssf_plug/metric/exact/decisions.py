r"""The k best of each query from its candidates: in float64 first, and canonically where float64 leaves it open.

Two scores in float64 that lie closer together than twice their bound, some 10⁻¹³, are compared by their canonical
scores; equal ones stand in order of gallery index. A score that rounding to the result's dtype could send either way is
canonical, too: so the scores that come out, like the indices, do not depend on how they were summed.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gssf_plug.metric.exact.candidates import pad_pairs
from gssf_plug.metric.exact.canonical import CanonicalQueries, canonical_scores
from gssf_plug.metric.exact.falling import falling_scores
from gssf_plug.metric.exact.reaching import places
from gssf_plug.metric.exact.sums import correct_roots, power_of_two, scale_rows

__all__ = ["best_of_all", "best_of_candidates"]

BEYOND = 8  # places behind the k-th that are looked at for a gap
SCORES_AT_ONCE = 131_072  # 1 MB: what is made of them stays in the cache
ENTRIES_AT_ONCE = 262_144  # 2 MB of float64 rows, gathered and scored

Ranked = tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]


def best_of_candidates(
    queries: CanonicalQueries,
    gallery: Float[Tensor, "m dim"],
    rows: Int[Tensor, " pairs"],
    columns: Int[Tensor, " pairs"],
    k: int,
    dtype: torch.dtype,
) -> Ranked:
    """The k best of each query's candidates.

    Args:
        queries: their canonical side.
        gallery: the gallery as it was given.
        rows: the candidates' queries, in order.
        columns: their gallery items, in order within each query.
        k: how many; where there are fewer, the rest has score -inf and index -1.
        dtype: data type of the scores that come out.
    """
    count = len(queries.folded)
    (indices,) = pad_pairs(count, rows, columns)
    scores, slack = _float64_scores(queries, gallery, indices)
    scores, order, grain = falling_scores(scores.masked_fill_(indices < 0, float("-inf")), indices.shape[1])
    return _decided(queries, gallery, scores, indices.gather(1, order), (slack, grain), k, dtype)


def best_of_all(
    queries: CanonicalQueries,
    gallery: Float[Tensor, "m dim"],
    scores: Float[Tensor, "n m"],
    slack: Float[Tensor, " n"],
    k: int,
    dtype: torch.dtype,
) -> Ranked:
    """The k best of each row of float64 scores, each of which is at most `slack` off; -inf takes a pair out."""
    size, width = scores.shape[1], k + BEYOND
    while True:
        width = min(width, size)
        best, order, grain = falling_scores(scores, width)
        unsure = _unsure(slack, grain, gallery.shape[1])
        # behind a gap nothing equals what stands before it
        gaps = best[:, k - 1 : -1] - best[:, k:] > 2 * unsure[:, None]
        if width == size or bool(gaps.any(1).all()):
            return _decided(queries, gallery, best, order, (slack, grain), k, dtype)
        width *= 4


def _float64_scores(
    queries: CanonicalQueries, gallery: Tensor, indices: Int[Tensor, "n w"]
) -> tuple[Float[Tensor, "n w"], Float[Tensor, " n"]]:
    """Scores of each query with the items of its row of indices, and how far each row of them may be off."""
    count, width = indices.shape
    dim = gallery.shape[1]
    scores = queries.folded.new_zeros(count, width)
    lengths = torch.ones_like(scores)
    counts = (indices >= 0).sum(1).tolist()
    size = max(1, ENTRIES_AT_ONCE // max(1, width * dim))
    # written again and again: memory that was just used is in the cache, fresh memory would first have to be found
    given = gallery.new_empty(min(size, count) * width, dim)
    precise = scores.new_empty(given.shape)
    for start in range(0, count, size):
        own = slice(start, min(start + size, count)), slice(max(counts[start : start + size]))
        picked = indices[own].flatten().clamp_min(0).to(gallery.device)
        items = torch.index_select(gallery, 0, picked, out=given[: len(picked)])
        exponents = None
        if items.dtype == torch.float64:  # whose squares may leave float64
            flat, exponents = scale_rows(items.to(scores.device))
        else:
            flat = precise[: len(picked)].copy_(items)
        values = flat.view(*indices[own].shape, dim)
        lengths[own] = torch.linalg.vector_norm(values, dim=2)
        # a batched product of matrices and single vectors takes three times as long
        scores[own] = values.mul_(queries.folded[own[0], None]).sum(2)
        if exponents is not None and queries.squares is None:
            powers = power_of_two(exponents).view_as(scores[own])
            scores[own] *= powers
            lengths[own] *= powers
    reach = torch.linalg.vector_norm(queries.folded, dim=1) * power_of_two(queries.exponents)
    scores = scores * power_of_two(queries.exponents)[:, None]
    if queries.squares is None:
        reach = reach * lengths.amax(1) if width else reach
    else:
        roots = correct_roots(queries.squares)
        scores = scores / (lengths.masked_fill_(lengths == 0, 1.0) * roots.masked_fill(roots == 0, 1.0)[:, None])
        reach = reach / roots.masked_fill(roots == 0, 1.0)
    return scores, reach * (dim + 32) * 2.0**-52  # of the sum, and half as much of the norm beneath it, in 2⁻⁵³


def _decided(
    queries: CanonicalQueries,
    gallery: Tensor,
    scores: Float[Tensor, "n w"],
    indices: Int[Tensor, "n w"],
    off: tuple[Float[Tensor, " n"], float],
    k: int,
    dtype: torch.dtype,
) -> Ranked:
    """The k best of rows of falling scores, near ties decided; padded to k.

    Args:
        queries: their canonical side.
        gallery: the gallery as it was given.
        scores: scores of each query, falling but for near ties; overwritten.
        indices: the gallery items that have them; overwritten.
        off: how far a score of each query may be off, before it lost some bits; and the grain of these.
        k: how many; where there are fewer, the rest has score -inf and index -1.
        dtype: data type of the scores that come out.
    """
    at, tied = _open(scores, off, min(k, scores.shape[1]), gallery.shape[1], dtype)
    if len(at):
        rows = at.div(scores.shape[1], rounding_mode="floor")
        found = canonical_scores(queries, rows, gallery, indices.flatten().index_select(0, at))
        scores.view(-1).index_copy_(0, at, found)
    if len(tied):  # elsewhere the canonical scores stand in the same order
        by_index, order = indices[tied].sort(dim=1)
        sorted_scores, by_score = scores[tied].gather(1, order).sort(dim=1, descending=True, stable=True)
        scores[tied], indices[tied] = sorted_scores, by_index.gather(1, by_score)
    missing = (0, max(0, k - scores.shape[1]))
    best, chosen = scores[:, :k], indices[:, :k]
    if missing[1]:
        best = torch.nn.functional.pad(best, missing, value=float("-inf"))
        chosen = torch.nn.functional.pad(chosen, missing, value=-1)
    if not bool(best[:, -1].gt(float("-inf")).all()):  # these fall, too
        chosen = chosen.masked_fill(best == float("-inf"), -1)
    return best.to(dtype), chosen


def _open(
    scores: Float[Tensor, "n w"], off: tuple[Float[Tensor, " n"], float], k: int, dim: int, dtype: torch.dtype
) -> tuple[Int[Tensor, " open"], Int[Tensor, " tied"]]:
    """Which of the rows' falling scores must be canonical, counted through all rows; and in which rows two are near."""
    count, width = scores.shape
    open_places, tied_rows = [], []
    size = max(1, SCORES_AT_ONCE // max(1, width))
    for start in range(0, count, size):
        own = slice(start, min(start + size, count))
        some, slack, unsure = scores[own], off[0][own, None], _unsure(off[0][own, None], off[1], dim)
        near = some[:, :-1] - some[:, 1:] <= 2 * unsure  # never true of -inf, whose difference is no number
        result = torch.zeros_like(some, dtype=torch.bool)
        first = some[:, :k]
        away = slack if off[1] == 0.0 else first.abs().clamp_max_(1e300).mul_(1.01 * off[1] * 2.0**-52).add_(slack)
        torch.ne((first - away).to(dtype), (first + away).to(dtype), out=result[:, :k])
        tied = near.any(1).nonzero()[:, 0]
        if len(tied):
            near = near[tied]
            both = torch.zeros_like(result[tied])
            both[:, :-1] |= near
            both[:, 1:] |= near
            # beyond the k-th place only those count that a chain of near ties connects with it
            if k < width:
                both[:, k:] &= near[:, k - 1 :].long().cummin(dim=1).values.bool()
            result[tied] |= both
        open_places.append(places(result).add_(start * width))
        tied_rows.append(tied.add_(start))
    return torch.cat(open_places), torch.cat(tied_rows)


def _unsure(slack: Tensor, grain: float, dim: int) -> Tensor:
    """Half of how close two scores may be and yet stand in the wrong order."""
    return slack * (1 + 2.1 * grain / (dim + 8))  # `slack` holds (dim + 32) · 2⁻⁵² of the largest that a score can be
