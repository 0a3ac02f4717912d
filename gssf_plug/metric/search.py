"""Exact top-k under a metric, in chunks. Memory is bounded by one chunk of scores and the result.

The gallery is read once for each chunk of queries, in order: a memory-mapped one of any size will do. Scores are made
in a short dtype whose error is bounded; what that leaves open is decided in float64, and near ties by canonical scores
(`gssf_plug.metric.exact`). Equal scores stand in the order of gallery index. So a result depends on the features and
the metric alone: not on chunks, threads, the machine, nor, with `distributed=True`, on how many processes there are.

For approximate search put `metric.gallery(items)` into any inner-product index, and query it with
`metric.fold(queries)`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gssf_plug.arguments import check_function, checked_count, checked_flag
from gssf_plug.distributed import gather_detached, process_count, share
from gssf_plug.errors import ArgumentError
from gssf_plug.metric.arrays import Array, check_has_values, float_features, like_inputs, to_tensor
from gssf_plug.metric.exact.candidates import Candidates
from gssf_plug.metric.exact.canonical import CanonicalQueries, canonical_queries, canonical_scores
from gssf_plug.metric.exact.choosing import Ranked, RowsOfScores, choose_best
from gssf_plug.metric.exact.decisions import best_of_candidates
from gssf_plug.metric.exact.fast_scores import fast_queries
from gssf_plug.metric.exact.first_look import Part, first_look
from gssf_plug.metric.exact.int8.whole_numbers import WholeRows
from gssf_plug.metric.exact.plain_tensors import as_outside, on_plain_tensors
from gssf_plug.metric.exact.reaching import GROUP
from gssf_plug.metric.exact.threads import slices
from gssf_plug.metric.gallery import FEW_QUERIES, PreparedGallery, check_finite, read_part
from gssf_plug.metric.metric import GSSFMetric
from gssf_plug.metric.options import check_metric, checked_chunk
from gssf_plug.metric.sample import Sample

__all__ = ["MANY", "Neighbours", "topk"]

ExcludedPairs = Callable[[Int[Tensor, " n"], Int[Tensor, " m"]], Bool[Tensor, "n m"]]

MANY = 64  # k at which a 64th of the gallery or more is wanted: a float64 product is then cheaper than candidates
FEW_AT_ONCE = 4  # chunks of the gallery, for a few queries, whose chunks cost more to begin than to hold
CONVERTED_AT_ONCE = 16_777_216  # entries of a gallery: 64 MB in float32
CHUNKS_HELD = 4  # by threads that each look at parts of their own
OF_A_CHUNK = 8  # an eighth of it: so many scores of a gallery of whole numbers are worth beginning


class Neighbours(NamedTuple):
    """What `topk` found, best first.

    `scores` (N, k) and `indices` (N, k); a query with fewer than k allowed items ends in score -inf and index -1.
    """

    scores: Float[Tensor, "n k"]
    indices: Int[Tensor, "n k"]


@on_plain_tensors
def topk(
    metric: GSSFMetric | None,
    queries: Float[Array, "n dim"],
    gallery: Float[Array, "m dim"] | PreparedGallery,
    k: int,
    *,
    exclude: Bool[Array, "n m"] | ExcludedPairs | None = None,
    query_chunk: int = 1024,
    gallery_chunk: int = 8192,
    distributed: bool = False,
    forbidden: Bool[Array, "n m"] | ExcludedPairs | None = None,
) -> Neighbours:
    """The k best gallery items of every query, exactly, best first; equal scores in order of gallery index.

    "Equal" is decided by the canonical score, one float64 number that depends on the two rows and the metric alone: the
    same rows tie in every dtype, chunk and process. The scores that come out are these, rounded to the result's dtype,
    so two that print alike may still stand in their order. A row of zeros scores 0 with everything. Inside
    `torch.compile` it breaks the graph, as all ranking functions do, so `fullgraph=True` ends in torch's own error.

    Args:
        metric: the similarity; None means cosine.
        queries: N×D features, not yet folded; a tensor, a numpy array or lists.
        gallery: M×D features, not yet normalised; also a memory-mapped tensor or array, such as
            `torch.from_file(path, size=m * dim, dtype=torch.float16).view(m, dim)`, or `prepare_gallery(features)`,
            which saves many calls the reading. On another device than the queries it is moved chunk by chunk.
        k: how many, 1 … M.
        exclude: pairs that must not be returned: a boolean N×M matrix, or a function of query indices (n,) and gallery
            indices (m,) that gives n×m of it (nothing of size N×M is then formed).
        query_chunk: queries scored at once, default 1,024. The gallery is read once for each such chunk.
        gallery_chunk: gallery items scored at once, default 8,192; more of them for a few queries. A chunk of scores
            takes query_chunk · gallery_chunk · 4 bytes, 32 MB by default; up to four threads hold one each.
        distributed: share the gallery among the processes, all of which call with the same arguments (a memory-mapped
            gallery is read in parts), and all of which receive the same result.
        forbidden: the older name of `exclude`.

    Returns:
        Neighbours: scores (N, k), float32 or better, and indices (N, k); numpy arrays for numpy queries.

    Raises:
        ArgumentError: an empty gallery, k below 1 or above M, NaN or infinite features or scores, another width than
            the metric's, `exclude` of another shape.
    """
    if exclude is not None and forbidden is not None:
        raise ArgumentError("forbidden", "be left out beside `exclude`", "both", "It is the older name of `exclude`.")
    distributed = checked_flag("distributed", distributed)
    name, mask = ("exclude", exclude) if exclude is not None else ("forbidden", forbidden)
    search = _checked_search(metric, queries, gallery, k, name, mask)
    whole, size = search.queries, len(search.features)
    query_chunk = checked_chunk("query_chunk", query_chunk, max(size, len(whole)))
    gallery_chunk = checked_chunk("gallery_chunk", gallery_chunk, size)
    gallery_chunk = search.items_at_once(query_chunk, gallery_chunk, process_count() if distributed else 1)
    query_chunk = min(query_chunk, max(1, len(whole)))
    # a chunk of scores in float64 takes twice the memory
    query_chunk = max(1, query_chunk // 2) if search.many_wanted else query_chunk
    own = share(range(0, size, gallery_chunk), distributed)
    search.parts = [slice(start, min(start + gallery_chunk, size)) for start in own]
    chunks = torch.arange(len(whole), device=whole.device).split(query_chunk) if len(whole) else ()
    result = search.unranked(len(whole))
    for rows in chunks:
        first, last = int(rows[0]), int(rows[-1])
        _search_chunk(search, rows, (result.scores[first : last + 1], result.indices[first : last + 1]))
    if distributed and len(whole):
        result = _best_of_processes(search, result.indices, chunks)
    return Neighbours(*(like_inputs(part, queries) for part in result))  # type: ignore[arg-type]


@dataclass
class _Search:
    """What one call asks for, checked."""

    metric: GSSFMetric | None
    queries: Tensor
    gallery: Tensor | PreparedGallery
    features: Tensor
    k: int
    exclude: Tensor | ExcludedPairs | None
    parts: list[slice]

    @property
    def dtype(self) -> torch.dtype:
        """Of the scores that come out."""
        return torch.promote_types(torch.promote_types(self.queries.dtype, self.features.dtype), torch.float32)

    @property
    def normalize(self) -> bool:
        return self.metric is None or self.metric.normalize

    @property
    def many_wanted(self) -> bool:
        return self.k * MANY > len(self.features)

    def items_at_once(self, queries: int, items: int, processes: int) -> int:
        """Gallery items scored at once where `queries` · `items` scores may be held: for few queries, more of them."""
        few = max(1, len(self.queries))
        if not isinstance(self.gallery, PreparedGallery) or not isinstance(self.gallery.rounded, WholeRows):
            return items * FEW_AT_ONCE if few <= FEW_QUERIES else items
        at_once = items * max(1, queries // (OF_A_CHUNK * few))
        at_once = min(at_once, max(items, -(-len(self.features) // processes)))
        if self.features.dtype != torch.float32 or self.queries.device != self.features.device:
            # where whole numbers say too little, a part is converted
            at_once = min(at_once, max(items, CONVERTED_AT_ONCE // self.features.shape[1]))
        return -(-at_once // GROUP) * GROUP

    @property
    def threads(self) -> int:
        """How many may look at parts of their own: one where the user's function must be asked."""
        apart = self.exclude is None or isinstance(self.exclude, Tensor)
        return torch.get_num_threads() if apart and self.features.device.type == "cpu" else 1

    def parts_for(self, threads: int) -> list[slice]:
        """The own parts; for several threads as many for each, the smaller the more threads hold them."""
        if threads == 1:
            return self.parts
        start, size = self.parts[0].start, self.parts[-1].stop - self.parts[0].start
        most = (self.parts[0].stop - start) * min(threads, CHUNKS_HELD)
        rounds = -(-size // most)
        equal = slices(size, -(-size // (rounds * threads * GROUP)) * GROUP)
        return [slice(start + part.start, start + part.stop) for part in equal]

    def unranked(self, count: int) -> Neighbours:
        """Room for the results of so many queries."""
        scores = self.queries.new_empty((count, self.k), dtype=self.dtype)
        return Neighbours(scores, self.queries.new_empty((count, self.k), dtype=torch.long))

    def read(self, part: slice, queries: int, exact: bool = False) -> Part:
        """A part of the gallery, for so many queries."""
        return read_part(self.gallery, part, self.normalize, queries, self.queries.device, exact)

    def hidden(self, rows: Int[Tensor, " n"], part: slice) -> Bool[Tensor, "n m"] | None:
        """The excluded pairs of some queries with a part of the gallery."""
        if isinstance(self.exclude, Tensor):
            return self.exclude[:, part][rows.to(self.exclude.device)].to(rows.device)  # not whole rows of it
        return self.hidden_items(rows, torch.arange(part.start, part.stop, device=rows.device))

    def hidden_items(self, rows: Int[Tensor, " n"], items: Int[Tensor, " m"]) -> Bool[Tensor, "n m"] | None:
        """The excluded pairs of some queries with some items."""
        if self.exclude is None:
            return None
        if isinstance(self.exclude, Tensor):
            return self.exclude[rows.to(self.exclude.device)[:, None], items.to(self.exclude.device)].to(rows.device)
        hidden = as_outside(self.exclude, rows, items.to(rows.device))
        hidden = torch.from_numpy(hidden) if isinstance(hidden, np.ndarray) else hidden
        _check_mask("exclude", hidden, (len(rows), len(items)), "a function that gives ")
        return hidden.to(rows.device)


def _search_chunk(search: "_Search", rows: Int[Tensor, " n"], result: Ranked, guess: bool = True) -> None:
    """Write the k best of some queries: the gallery is read in order, and what may be among them is kept."""
    queries = canonical_queries(search.metric, search.queries[rows])
    if not bool(queries.folded.isfinite().all()):
        remedy = "Training diverged: go back to an earlier checkpoint and lower the metric's learning rate."
        raise ArgumentError("metric", "give finite scores", "NaN or infinity in folded queries", remedy)
    if search.many_wanted or not _screened(search, queries, rows, result, guess):
        _in_float64(search, queries, rows, result)
    scores, indices = result
    if bool(scores[:, :1].isinf().logical_and_(indices[:, :1] >= 0).any()):  # the largest stands first
        remedy = "Normalise the features, or build the metric with normalize=True."
        raise ArgumentError("metric", "give finite scores", "a product that overflows", remedy)


def _screened(
    search: "_Search", queries: CanonicalQueries, rows: Int[Tensor, " n"], result: Ranked, guess: bool
) -> bool:
    """By the fast product; False where it decides too little."""
    if not search.parts:
        return False
    items = search.read(search.parts[0], len(rows))
    close = fast_queries(queries, items.dtype)
    candidates = Candidates(close, search.k, first_look(queries, close, items))
    sample = Sample.of(search.parts, search.k) if guess and candidates.first.looks_short else None
    if sample is not None:
        least = sample.least(candidates.first, search.features, search.normalize, partial(search.hidden_items, rows))
        if least is not None:
            candidates.guess(least)
    threads = 1 if candidates.guessed is None else search.threads  # else the first part tells where to begin
    parts = search.parts_for(threads)

    def read(part: slice) -> tuple[Part, Tensor | None]:
        return items if part == search.parts[0] else search.read(part, len(rows)), search.hidden(rows, part)

    if not candidates.add_all(parts, read, threads):
        return False
    candidates.prune()
    best_of_candidates(queries, search.features, candidates.pairs.rows, candidates.pairs.columns, result)
    missed = candidates.missed()
    if len(missed):
        again = search.unranked(len(missed))
        _search_chunk(search, rows[missed], again, guess=False)
        for all_rows, found in zip(result, again, strict=True):
            all_rows[missed] = found
    return True


def _in_float64(search: "_Search", queries: CanonicalQueries, rows: Int[Tensor, " n"], result: Ranked) -> None:
    """By a float64 product, and canonical scores for what even that leaves open."""
    fast = fast_queries(queries, torch.float64)
    candidates = Candidates(fast, search.k, first_look(queries, fast))
    for part in search.parts:
        items, hidden = search.read(part, len(rows), exact=True), search.hidden(rows, part)
        if len(search.parts) == 1:
            # where all are wanted: a row's scores are sorted before its indices are written, and take as many bytes
            room = result[1].view(torch.float64) if search.k == len(search.features) else None
            scores, scale = fast.product(items.rows, out=room), fast.scale(items.rows)
            scores = scores if scale == 1.0 else scores.mul_(scale)
            scores = scores if hidden is None else scores.masked_fill_(hidden, float("-inf"))
            slack = fast.margins(items.rows) * scale
            choose_best(RowsOfScores(queries, search.features, scores, None, slack), result)
            return
        candidates.add(items, part.start, hidden)
        if candidates.too_many():  # masses of ties
            pairs = candidates.pairs
            candidates.settle(canonical_scores(queries, pairs.rows, search.features, pairs.columns))
    candidates.prune()
    best_of_candidates(queries, search.features, candidates.pairs.rows, candidates.pairs.columns, result)


def _best_of_processes(search: "_Search", own: Int[Tensor, "n k"], chunks: tuple[Int[Tensor, " n"], ...]) -> Neighbours:
    """The k best of what each process found in its part: rounded scores could not tell, so they are decided again."""
    indices = gather_detached(own).unflatten(0, (process_count(), -1)).transpose(0, 1).flatten(1).sort(dim=1).values
    result = search.unranked(len(own))
    for chunk in chunks:
        rows, places = (indices[chunk] >= 0).nonzero(as_tuple=True)
        queries = canonical_queries(search.metric, search.queries[chunk])
        found, part = search.unranked(len(chunk)), indices[chunk][rows, places]
        best_of_candidates(queries, search.features, rows, part, found)
        result.scores[chunk], result.indices[chunk] = found
    return result


def _checked_search(
    metric: GSSFMetric | None,
    queries: object,
    gallery: object,
    k: object,
    name: str,
    exclude: object,
) -> _Search:
    check_metric(metric, values=True)
    rows = _checked_features("queries", queries)
    items = gallery.features if isinstance(gallery, PreparedGallery) else _checked_features("gallery", gallery)
    if len(items) == 0:
        raise ArgumentError("gallery", "hold at least one item", "an empty gallery", "Give the features to search in.")
    for side, features in (("queries", rows), ("gallery", items)):
        width = items.shape[1] if metric is None else metric.dim
        if features.shape[1] != width:
            rule, remedy = f"have {width} channels in its last dimension", "Both sides come from one space of features."
            raise ArgumentError(side, rule, f"shape {tuple(features.shape)}", remedy)
    if isinstance(gallery, PreparedGallery) and gallery.normalized != (metric is None or metric.normalize):
        rule, got = "be prepared with the metric's `normalize`", f"normalize={gallery.normalized}"
        raise ArgumentError("gallery", rule, got, "Prepare it anew with prepare_gallery(features, normalize=...).")
    rule = f"be between 1 and the gallery's size {len(items)}"
    count = checked_count("k", k, "Ask for fewer items.", rule=rule, most=len(items))
    check_finite("queries", rows, 0)
    if isinstance(exclude, np.ndarray):
        exclude = to_tensor(name, exclude)
    if callable(exclude):
        check_function(name, exclude, "It gives a boolean matrix for query and item numbers.", takes=2)
    elif exclude is not None:
        _check_mask(name, exclude, (len(rows), len(items)))
    source = gallery if isinstance(gallery, PreparedGallery) else items
    return _Search(metric, rows, source, items, count, exclude, [])  # type: ignore[arg-type]


def _checked_features(name: str, value: object) -> Tensor:
    features = float_features(name, value)
    check_has_values(name, features)
    if features.ndim != 2:
        got = f"{features.dtype} of shape {tuple(features.shape)}"
        raise ArgumentError(name, "be a floating-point tensor of features N×D", got, "Give one row per item.")
    return features


def _check_mask(name: str, mask: object, shape: tuple[int, int], source: str = "") -> None:
    remedy = "Give one row per query and one column per gallery item."
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = str(mask.dtype) if isinstance(mask, Tensor) else type(mask).__name__
        raise ArgumentError(name, "be a boolean matrix, or a function that gives one", source + got, remedy)
    if mask.shape != shape:
        raise ArgumentError(name, f"have shape {shape}", f"{source}{tuple(mask.shape)}", remedy)
