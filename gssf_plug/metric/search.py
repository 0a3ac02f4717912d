"""Exact top-k under a metric, in chunks. Memory is bounded by one chunk of scores and the result.

Ties go to the lower gallery index, whatever the chunk size, so a result does not depend on the machine's memory.
For approximate search put `metric.gallery(items)` into any inner-product index, and query it with
`metric.fold(queries)`.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gssf_plug.errors import ArgumentError
from gssf_plug.metric.metric import GSSFMetric

__all__ = ["Neighbours", "topk"]

ForbiddenPairs = Callable[[Int[Tensor, " n"], Int[Tensor, " m"]], Bool[Tensor, "n m"]]


class Neighbours(NamedTuple):
    """What `topk` found, best first.

    `scores` (N, k) and `indices` (N, k); a query with fewer than k allowed items ends in score -inf and index -1.
    """

    scores: Float[Tensor, "n k"]
    indices: Int[Tensor, "n k"]


@torch.no_grad()
def topk(
    metric: GSSFMetric | None,
    queries: Float[Tensor, "n dim"],
    gallery: Float[Tensor, "m dim"],
    k: int,
    *,
    forbidden: Bool[Tensor, "n m"] | ForbiddenPairs | None = None,
    query_chunk: int = 1024,
    gallery_chunk: int = 16384,
) -> Neighbours:
    """The k best gallery items of every query, exactly, best first; equal scores in order of gallery index.

    Args:
        metric: the similarity; None means cosine.
        queries: N×D features, not yet folded.
        gallery: M×D features, not yet normalised.
        k: how many, 1 … M.
        forbidden: pairs that must not be returned: a boolean N×M matrix, or a function of query indices (n,) and
            gallery indices (m,) that gives n×m of it (nothing of size N×M is then formed).
        query_chunk: queries scored at once, default 1,024.
        gallery_chunk: gallery items scored at once, default 16,384. A chunk of scores takes
            query_chunk · gallery_chunk · 4 bytes, 64 MB by default.

    Returns:
        Neighbours: scores (N, k) and indices (N, k).

    Raises:
        ArgumentError: an empty gallery, k below 1 or above M, NaN or infinite features, another width than the
            metric's.
    """
    _check_search(queries, gallery, k, forbidden)
    _check_positive_chunks(query_chunk, gallery_chunk)
    metric = metric if metric is not None else _cosine(gallery)
    found = [
        _search_chunk(metric, queries, gallery, k, forbidden, rows, gallery_chunk)
        for rows in torch.arange(len(queries), device=queries.device).split(query_chunk)
    ]
    if not found:
        return Neighbours(queries.new_empty(0, k), torch.empty(0, k, dtype=torch.long, device=queries.device))
    return Neighbours(torch.cat([part.scores for part in found]), torch.cat([part.indices for part in found]))


def _cosine(features: Tensor) -> GSSFMetric:
    return GSSFMetric(features.shape[-1], terms=("diagonal",)).to(features.device)


def _search_chunk(
    metric: GSSFMetric,
    queries: Tensor,
    gallery: Tensor,
    k: int,
    forbidden: Tensor | ForbiddenPairs | None,
    rows: Int[Tensor, " n"],
    gallery_chunk: int,
) -> Neighbours:
    """The k best of one chunk of queries: the gallery is read in order and merged into what was best so far."""
    folded = metric.fold(queries[rows])
    best = None
    for columns in torch.arange(len(gallery), device=gallery.device).split(gallery_chunk):
        scores = folded @ metric.gallery(gallery[columns[0] : columns[-1] + 1]).T
        if forbidden is not None:
            hidden = forbidden(rows, columns) if callable(forbidden) else forbidden[rows][:, columns]
            scores = scores.masked_fill(hidden, float("-inf"))
        values, local = _stable_topk(scores, min(k, len(columns)))
        found = Neighbours(values, columns[local])
        best = found if best is None else _merge(best, found, k)
    assert best is not None
    return Neighbours(best.scores, best.indices.masked_fill(best.scores == float("-inf"), -1))


def _merge(best: Neighbours, new: Neighbours, k: int) -> Neighbours:
    """The k best of two results; `best` holds lower indices, so a stable sort keeps ties in order."""
    scores = torch.cat([best.scores, new.scores], dim=1)
    indices = torch.cat([best.indices, new.indices], dim=1)
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    return Neighbours(scores[:, :k], indices.gather(1, order)[:, :k])


def _stable_topk(scores: Float[Tensor, "n m"], k: int) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """`torch.topk` with ties to the lower index; only rows with a tie across the k-th place pay for a full sort."""
    values, indices = scores.topk(k, dim=1)
    last = values[:, -1:]
    cut = ((scores == last).sum(1) != (values == last).sum(1)).nonzero()[:, 0]
    if len(cut):
        sorted_values, sorted_indices = scores[cut].sort(dim=1, descending=True, stable=True)
        values[cut], indices[cut] = sorted_values[:, :k], sorted_indices[:, :k]
    indices, order = indices.sort(dim=1)
    values, by_score = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    return values, indices.gather(1, by_score)


def _check_search(queries: Tensor, gallery: Tensor, k: int, forbidden: Tensor | ForbiddenPairs | None) -> None:
    if len(gallery) == 0:
        raise ArgumentError("gallery", "hold at least one item", "an empty gallery", "Give the features to search in.")
    if not 1 <= k <= len(gallery):
        raise ArgumentError("k", f"be between 1 and the gallery's size {len(gallery)}", k, "Ask for fewer items.")
    for name, features in (("queries", queries), ("gallery", gallery)):
        for start, chunk in enumerate(features.split(65536)):
            finite = chunk.isfinite().all(dim=-1)
            if not bool(finite.all()):
                row = start * 65536 + int((~finite).nonzero()[0])
                raise ArgumentError(
                    name,
                    "be finite",
                    f"NaN or infinity in row {row}",
                    "Find what made it, or drop these rows.",
                )
    if isinstance(forbidden, Tensor) and forbidden.shape != (len(queries), len(gallery)):
        raise ArgumentError(
            "forbidden",
            f"have shape ({len(queries)}, {len(gallery)})",
            tuple(forbidden.shape),
            "Give one row per query and one column per gallery item.",
        )


def _check_positive_chunks(query_chunk: int, gallery_chunk: int) -> None:
    for name, size in (("query_chunk", query_chunk), ("gallery_chunk", gallery_chunk)):
        if size < 1:
            raise ArgumentError(name, "be at least 1", size, "Use the default, or less where memory is short.")
