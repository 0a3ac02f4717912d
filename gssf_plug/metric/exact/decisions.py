r"""The k best of each query from its candidates: in float64 first, and canonically where float64 leaves it open.

Two scores in float64 that lie closer together than twice their bound, some 10⁻¹³, are compared by their canonical
scores; equal ones stand in order of gallery index. A score that rounding to the result's dtype could send either way is
canonical, too: so the scores that come out, like the indices, do not depend on how they were summed.
"""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gssf_plug.metric.exact.candidates import pad_pairs
from gssf_plug.metric.exact.canonical import CanonicalQueries
from gssf_plug.metric.exact.choosing import Ranked, RowsOfScores, choose_best
from gssf_plug.metric.exact.sums import correct_roots, power_of_two, scale_rows
from gssf_plug.metric.exact.threads import in_threads, slices

__all__ = ["best_of_candidates"]

ENTRIES_AT_ONCE = 524_288  # 4 MB of float64 rows, gathered and scored
MANY_ENTRIES = 16_777_216  # that are worth threads of their own


def best_of_candidates(
    queries: CanonicalQueries,
    gallery: Float[Tensor, "m dim"],
    rows: Int[Tensor, " pairs"],
    columns: Int[Tensor, " pairs"],
    result: Ranked,
) -> None:
    """The k best of each query's candidates; where there are fewer, the rest has score -inf and index -1.

    Args:
        queries: their canonical side.
        gallery: the gallery as it was given.
        rows: the candidates' queries, in order.
        columns: their gallery items, in order within each query.
        result: scores and indices of the k best, which are written here.
    """
    (indices,) = pad_pairs(len(queries.folded), rows, columns)
    scores, slack = _float64_scores(queries, gallery, indices)
    scores = scores.masked_fill_(indices < 0, float("-inf"))
    choose_best(RowsOfScores(queries, gallery, scores, indices, slack), result)


def _float64_scores(
    queries: CanonicalQueries, gallery: Tensor, indices: Int[Tensor, "n w"]
) -> tuple[Float[Tensor, "n w"], Float[Tensor, " n"]]:
    """Scores of each query with the items of its row of indices, and how far each row of them may be off."""
    count, width = indices.shape
    dim = gallery.shape[1]
    scores = queries.folded.new_zeros(count, width)
    lengths = torch.ones_like(scores)
    blocks = slices(count, ENTRIES_AT_ONCE // max(1, width * dim))
    many = count * width * dim >= MANY_ENTRIES and gallery.device.type == scores.device.type == "cpu"
    threads = torch.get_num_threads() if many else 1
    in_threads(partial(_scoring, queries, gallery, indices, scores, lengths), blocks, threads, waits=True)
    reach = torch.linalg.vector_norm(queries.folded, dim=1) * power_of_two(queries.exponents)
    scores = scores * power_of_two(queries.exponents)[:, None]
    if queries.squares is None:
        reach = reach * lengths.amax(1) if width else reach
    else:
        roots = correct_roots(queries.squares)
        scores = scores / (lengths.masked_fill_(lengths == 0, 1.0) * roots.masked_fill(roots == 0, 1.0)[:, None])
        reach = reach / roots.masked_fill(roots == 0, 1.0)
    return scores, reach * (dim + 32) * 2.0**-52  # of the sum, and half as much of the norm beneath it, in 2⁻⁵³


def _scoring(
    queries: CanonicalQueries,
    gallery: Tensor,
    indices: Int[Tensor, "n w"],
    scores: Float[Tensor, "n w"],
    lengths: Float[Tensor, "n w"],
) -> Callable[[slice], None]:
    """What writes the products of some queries with their items, and the lengths of these."""
    width, dim = indices.shape[1], gallery.shape[1]
    counts = (indices >= 0).sum(1).tolist()
    # written again and again: memory that was just used is in the cache, fresh memory would first have to be found
    given = gallery.new_empty(max(width, min(len(indices) * width, ENTRIES_AT_ONCE // max(1, dim))), dim)
    precise = scores.new_empty(given.shape)

    def score(rows: slice) -> None:
        own = rows, slice(max(counts[rows]))
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
        scores[own] = values.mul_(queries.folded[rows, None]).sum(2)
        if exponents is not None and queries.squares is None:
            powers = power_of_two(exponents).view_as(scores[own])
            scores[own] *= powers
            lengths[own] *= powers

    return score
