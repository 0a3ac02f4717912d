"""Exact top-k under a metric, in chunks. Memory is bounded by one chunk of scores and the result.

The gallery is read once, in order: a memory-mapped one of any size will do. Scores are computed in float32 or better
whatever its dtype. Ties go to the lower gallery index, whatever the chunk size, so a result does not depend on the
machine's memory, nor, with `distributed=True`, on how many processes share the gallery.

For approximate search put `metric.gallery(items)` into any inner-product index, and query it with
`metric.fold(queries)`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gssf_plug.distributed import gather_detached, process_count, share
from gssf_plug.errors import ArgumentError
from gssf_plug.metric.bf16_search import can_screen, pad_pairs, screened
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
    gallery_chunk: int = 8192,
    distributed: bool = False,
) -> Neighbours:
    """The k best gallery items of every query, exactly, best first; equal scores in order of gallery index.

    Args:
        metric: the similarity; None means cosine.
        queries: N×D features, not yet folded.
        gallery: M×D features, not yet normalised; also a memory-mapped tensor, such as
            `torch.from_file(path, size=m * dim, dtype=torch.float16).view(m, dim)`. On another device than the queries
            it is moved chunk by chunk.
        k: how many, 1 … M.
        forbidden: pairs that must not be returned: a boolean N×M matrix, or a function of query indices (n,) and
            gallery indices (m,) that gives n×m of it (nothing of size N×M is then formed).
        query_chunk: queries scored at once, default 1,024. The gallery is read once for each such chunk.
        gallery_chunk: gallery items scored at once, default 8,192. A chunk of scores takes
            query_chunk · gallery_chunk · 4 bytes, 32 MB by default.
        distributed: share the gallery among the processes, all of which call with the same arguments (a memory-mapped
            gallery is read in parts), and all of which receive the same result.

    Returns:
        Neighbours: scores (N, k), float32 or better, and indices (N, k).

    Raises:
        ArgumentError: an empty gallery, k below 1 or above M, NaN or infinite features or scores, another width than
            the metric's.
    """
    _check_search(queries, gallery, k, forbidden)
    _check_positive_chunks(query_chunk, gallery_chunk)
    if not len(queries):
        scores = queries.new_empty(0, k, dtype=_dtype(queries, gallery))
        return Neighbours(scores, torch.empty(0, k, dtype=torch.long, device=queries.device))
    metric = metric if metric is not None else _cosine(queries)
    own = share(range(0, len(gallery), gallery_chunk), distributed)
    parts = [slice(start, min(start + gallery_chunk, len(gallery))) for start in own]
    found = [
        _search_chunk(metric, queries, gallery, k, forbidden, rows, parts)
        for rows in torch.arange(len(queries), device=queries.device).split(query_chunk)
    ]
    whole = Neighbours(torch.cat([part.scores for part in found]), torch.cat([part.indices for part in found]))
    return _best_of_processes(whole, k) if distributed else whole


def _cosine(features: Tensor) -> GSSFMetric:
    return GSSFMetric(features.shape[-1], terms=("diagonal",)).to(features.device)


def _search_chunk(
    metric: GSSFMetric,
    queries: Tensor,
    gallery: Tensor,
    k: int,
    forbidden: Tensor | ForbiddenPairs | None,
    rows: Int[Tensor, " n"],
    parts: Sequence[slice],
) -> Neighbours:
    """The k best of one chunk of queries: the gallery is read in order and merged into what was best so far."""
    folded = metric.fold(queries[rows].to(_dtype(queries, gallery)))
    if not bool(folded.isfinite().all()):
        remedy = "Training diverged: go back to an earlier checkpoint and lower the metric's learning rate."
        raise ArgumentError("metric", "give finite scores", "NaN or infinity in folded queries", remedy)
    best = Neighbours(folded.new_full((len(rows), k), float("-inf")), torch.full_like(rows[:, None], -1).repeat(1, k))

    def items_of(which: slice | Tensor) -> Tensor:
        start = which.start if isinstance(which, slice) else 0
        return metric.gallery(_finite("gallery", gallery[which].to(folded), start))

    screening = metric.normalize and can_screen(folded)
    found = screened(folded, items_of, parts, k, partial(_hidden, forbidden, rows)) if screening else None
    if found is not None:
        best = Neighbours(*found)
    else:
        for part in parts:
            scores = folded @ items_of(part).T
            if not metric.normalize and not bool(scores.sum().isfinite()) and not bool(scores.isfinite().all()):
                got, remedy = (
                    "a product that overflows",
                    "Normalise the features, or build the metric with normalize=True.",
                )
                raise ArgumentError("metric", "give finite scores", got, remedy)
            new = _better(scores, best.scores[:, -1], k, _hidden(forbidden, rows, part))
            best = _merge(best, new._replace(indices=new.indices + part.start), k)
    return Neighbours(best.scores, best.indices.masked_fill(best.scores == float("-inf"), -1))


def _hidden(
    forbidden: Tensor | ForbiddenPairs | None, rows: Int[Tensor, " n"], part: slice
) -> Bool[Tensor, "n m"] | None:
    columns = torch.arange(part.start, part.stop, device=rows.device)
    return forbidden(rows, columns) if callable(forbidden) else None if forbidden is None else forbidden[rows][:, part]


def _better(
    scores: Float[Tensor, "n m"], least: Float[Tensor, " n"], k: int, hidden: Bool[Tensor, "n m"] | None
) -> Neighbours:
    """The scores of each row above `least`, in order of index, padded with -inf; the k best where they are many."""
    if hidden is not None:
        scores = scores.masked_fill_(hidden, float("-inf"))
    rows, columns = (scores > least[:, None]).nonzero(as_tuple=True)
    if len(rows) > 2 * k * len(scores):
        return Neighbours(*_stable_topk(scores, min(k, scores.shape[1])))
    return Neighbours(*pad_pairs(len(scores), rows, columns, scores[rows, columns]))


def _best_of_processes(own: Neighbours, k: int) -> Neighbours:
    """The k best of all processes, whose parts of the gallery follow each other in the order of rank."""
    scores, indices = (gather_detached(part).unflatten(0, (process_count(), -1)) for part in own)
    best = Neighbours(scores[0], indices[0])
    for other in zip(scores[1:], indices[1:], strict=True):
        best = _merge(best, Neighbours(*other), k)
    return best


def _merge(best: Neighbours, new: Neighbours, k: int) -> Neighbours:
    """The k best of two results; `best` holds lower indices, so a stable sort keeps ties in order."""
    if new.scores.shape[1] == 0:
        return best
    scores = torch.cat([best.scores, new.scores], dim=1)
    indices = torch.cat([best.indices, new.indices], dim=1)
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    return Neighbours(scores[:, :k], indices.gather(1, order[:, :k]))


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
    for name, features in (("queries", queries), ("gallery", gallery)):
        if not isinstance(features, Tensor) or features.ndim != 2 or not features.is_floating_point():
            tensor = isinstance(features, Tensor)
            got = f"{features.dtype} of shape {tuple(features.shape)}" if tensor else type(features).__name__
            raise ArgumentError(name, "be a floating-point tensor of features N×D", got, "Give one row per item.")
    if len(gallery) == 0:
        raise ArgumentError("gallery", "hold at least one item", "an empty gallery", "Give the features to search in.")
    if not 1 <= k <= len(gallery):
        raise ArgumentError("k", f"be between 1 and the gallery's size {len(gallery)}", k, "Ask for fewer items.")
    _finite("queries", queries, 0)
    if isinstance(forbidden, Tensor) and forbidden.shape != (len(queries), len(gallery)):
        raise ArgumentError(
            "forbidden",
            f"have shape ({len(queries)}, {len(gallery)})",
            tuple(forbidden.shape),
            "Give one row per query and one column per gallery item.",
        )


def _finite(name: str, features: Tensor, before: int) -> Tensor:
    """The features, after a look at each; `before` rows precede them."""
    if not bool(features.sum().isfinite()):  # one pass; a sum that overflows alone is looked at again
        finite = features.isfinite().all(dim=-1)
        if bool(finite.all()):
            return features
        row = before + int((~finite).nonzero()[0])
        raise ArgumentError(
            name, "be finite", f"NaN or infinity in row {row}", "Find what made it, or drop these rows."
        )
    return features


def _dtype(queries: Tensor, gallery: Tensor) -> torch.dtype:
    return torch.promote_types(torch.promote_types(queries.dtype, gallery.dtype), torch.float32)


def _check_positive_chunks(query_chunk: int, gallery_chunk: int) -> None:
    for name, size in (("query_chunk", query_chunk), ("gallery_chunk", gallery_chunk)):
        if size < 1:
            raise ArgumentError(name, "be at least 1", size, "Use the default, or less where memory is short.")
