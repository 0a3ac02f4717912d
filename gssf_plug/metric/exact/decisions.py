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
from gssf_plug.metric.exact.sums import power_of_two, scale_rows

__all__ = ["best_of_all", "best_of_candidates"]

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
    scores, order = scores.masked_fill_(indices < 0, float("-inf")).sort(dim=1, descending=True, stable=True)
    return _decided(queries, gallery, scores, indices.gather(1, order), slack, k, dtype)


def best_of_all(
    queries: CanonicalQueries,
    gallery: Float[Tensor, "m dim"],
    scores: Float[Tensor, "n m"],
    slack: Float[Tensor, " n"],
    k: int,
    dtype: torch.dtype,
) -> Ranked:
    """The k best of each row of float64 scores, each of which is at most `slack` off; -inf takes a pair out."""
    width = k
    if k < scores.shape[1]:
        least = scores.topk(k, dim=1).values[:, -1:]
        width = int((scores >= least - 2 * slack[:, None]).sum(1).max())
    if width > scores.shape[1] // 2 and scores.device.type == "cpu":
        # numpy sorts with vector instructions; that it does not keep ties in order does not matter here
        order = torch.from_numpy(scores.neg().numpy().argsort(axis=1)[:, :width])
        best = scores.gather(1, order)
    else:
        best, order = scores.topk(width, dim=1)
    return _decided(queries, gallery, best, order, slack, k, dtype)


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
        picked = indices[own].flatten().clamp_min_(0).to(gallery.device)
        items = torch.index_select(gallery, 0, picked, out=given[: len(picked)])
        exponents = None
        if items.dtype == torch.float64:  # whose squares may leave float64
            flat, exponents = scale_rows(items.to(scores.device))
        else:
            flat = precise[: len(picked)].copy_(items)
        values = flat.view(*indices[own].shape, dim)
        scores[own] = (values @ queries.folded[own[0], :, None])[..., 0]
        lengths[own] = torch.linalg.vector_norm(values, dim=2)
        if exponents is not None and queries.squares is None:
            powers = power_of_two(exponents).view_as(scores[own])
            scores[own] *= powers
            lengths[own] *= powers
    reach = torch.linalg.vector_norm(queries.folded, dim=1) * power_of_two(queries.exponents)
    scores = scores * power_of_two(queries.exponents)[:, None]
    if queries.squares is None:
        reach = reach * lengths.amax(1) if width else reach
    else:
        roots = queries.squares.sqrt()
        scores = scores / (lengths.masked_fill_(lengths == 0, 1.0) * roots.masked_fill(roots == 0, 1.0)[:, None])
        reach = reach / roots.masked_fill(roots == 0, 1.0)
    return scores, reach * (dim + 32) * 2.0**-51


def _decided(
    queries: CanonicalQueries,
    gallery: Tensor,
    scores: Float[Tensor, "n w"],
    indices: Int[Tensor, "n w"],
    slack: Float[Tensor, " n"],
    k: int,
    dtype: torch.dtype,
) -> Ranked:
    """The k best of rows of falling scores, near ties decided; padded to k."""
    open_pairs = _open(scores, slack[:, None], min(k, scores.shape[1]), dtype)
    rows, places = open_pairs.nonzero(as_tuple=True)
    if len(rows):
        scores[rows, places] = canonical_scores(queries, rows, gallery, indices[rows, places])
        changed = open_pairs.any(1).nonzero()[:, 0]
        by_index, order = indices[changed].sort(dim=1)
        sorted_scores, by_score = scores[changed].gather(1, order).sort(dim=1, descending=True, stable=True)
        scores[changed], indices[changed] = sorted_scores, by_index.gather(1, by_score)
    missing = (0, max(0, k - scores.shape[1]))
    best = torch.nn.functional.pad(scores[:, :k], missing, value=float("-inf"))
    chosen = torch.nn.functional.pad(indices[:, :k], missing, value=-1)
    return best.to(dtype), chosen.masked_fill(best == float("-inf"), -1)


def _open(scores: Float[Tensor, "n w"], slack: Float[Tensor, "n 1"], k: int, dtype: torch.dtype) -> Tensor:
    """Which of the rows' falling scores must be canonical."""
    near = scores[:, :-1] - scores[:, 1:] <= 2 * slack
    result = torch.zeros_like(scores, dtype=torch.bool)
    result[:, :-1] |= near
    result[:, 1:] |= near
    # beyond the k-th place only those count that a chain of near ties connects with it
    if k < scores.shape[1]:
        result[:, k:] &= near[:, k - 1 :].long().cummin(dim=1).values.bool()
    first = scores[:, :k]
    result[:, :k] |= (first - slack).to(dtype) != (first + slack).to(dtype)
    return result & (scores > float("-inf"))
