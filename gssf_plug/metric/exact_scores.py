r"""Exact decisions at the speed of a short dtype: what the ranking functions of all rooms compare scores with.

    scores = ExactScores(metric, gallery)                # converts the gallery once
    part = scores.chunk(queries[rows])                   # folds some queries
    own = part.canonical(pair_rows, pair_columns)        # float64 scores of a few pairs, such as a query's positives
    fast = part.product()                                # all pairs, in bfloat16 where that is fast
    low, high = part.around(own_by_row)                  # (n, k) canonical values -> bounds in the dtype of `fast`

`fast > high` means that the canonical score is above the value, `fast < low` that it is below, both for certain. What
lies between (`low ≤ fast ≤ high`) is open; score these few pairs with `part.canonical` and compare in float64, where
equal means tied. Decided like that, nothing depends on chunks, threads, processes, the device, or the float dtype in
which the features are held. Where too much stays open (features that hardly differ), ask `scores.finer()`, the same
with a float64 product, whose bound is 10¹¹ times smaller.
"""

from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gssf_plug.metric.exact.canonical import (
    CanonicalQueries,
    are_short,
    canonical_items,
    canonical_queries,
    canonical_scores,
    canonical_table,
)
from gssf_plug.metric.exact.fast_rows import FastRows, fast_dtype, fast_rows
from gssf_plug.metric.exact.fast_scores import FastQueries, Open, fast_queries
from gssf_plug.metric.metric import GSSFMetric

__all__ = ["CanonicalScores", "ExactScores", "ScoredChunk"]

MANY_PAIRS = 4096
ITEMS_AT_ONCE = 33_554_432  # entries of a gallery that are made ready at once: 256 MB in float64
FEW_DIFFERENT = 256  # pairs for one of different rows: then to score these costs no more than to copy their scores
MOST_DIFFERENT = 4_194_304  # pairs of these: 32 MB


@dataclass(frozen=True)
class ScoredChunk:
    """Some queries against the gallery of an `ExactScores`.

    Args:
        queries: their canonical side.
        fast: their side of the fast product.
        items: the gallery's side of it.
        gallery: the gallery as it was given.
    """

    queries: CanonicalQueries
    fast: FastQueries
    items: FastRows
    gallery: Float[Tensor, "m dim"]

    def product(self) -> Float[Tensor, "n m"]:
        """Fast scores of all pairs, in the short dtype, to be compared with what `around` gives."""
        return self.fast.product(self.items)

    def canonical(self, rows: Int[Tensor, " pairs"], columns: Int[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
        """Canonical float64 scores of the pairs (query `rows[p]` of this chunk, gallery item `columns[p]`)."""
        return canonical_scores(self.queries, rows, self.gallery, columns)

    def around(self, values: Float[Tensor, "n ..."]) -> Open:
        """Bounds on fast scores for canonical values of the chunk's queries, one row of values per query."""
        return self.fast.around(values, self.items)

    def around_items(self, values: Float[Tensor, "..."]) -> Open:
        """Bounds that hold for every query of the chunk, for values that belong to gallery items (or to anything)."""
        return self.fast.around(values, self.items, self.fast.margins(self.items).max())


class ExactScores:
    """Scores under a metric of chunks of queries with one gallery.

    Args:
        metric: the similarity; None means cosine.
        gallery: M×D finite features of any float dtype. A copy in the dtype of the fast product is held beside them.
        dtype: data type of the fast product; None takes bfloat16 where the CPU multiplies it, else float32.
    """

    def __init__(
        self, metric: GSSFMetric | None, gallery: Float[Tensor, "m dim"], *, dtype: torch.dtype | None = None
    ) -> None:
        self.metric, self.gallery = metric, gallery
        self.dtype = dtype if dtype is not None else fast_dtype(gallery.device)
        self.items = fast_rows(gallery, metric is None or metric.normalize, self.dtype)

    def chunk(self, queries: Float[Tensor, "n dim"]) -> ScoredChunk:
        """Some queries, n×D finite features of any float dtype, not yet folded."""
        canonical = canonical_queries(self.metric, queries)
        return ScoredChunk(canonical, fast_queries(canonical, self.dtype), self.items, self.gallery)

    def finer(self) -> "ExactScores":
        """The same with a float64 product, for features that the short dtype cannot tell apart."""
        return ExactScores(self.metric, self.gallery, dtype=torch.float64)


class _DifferentRows(NamedTuple):
    """Canonical scores of different queries and items, and which of them each query and each item is."""

    scores: Float[Tensor, "some others"]
    queries: Int[Tensor, " n"]
    items: Int[Tensor, " m"]


class CanonicalScores:
    """Canonical scores, in float64, where many are asked for: each pair of different rows is scored once.

    Features of few values tie everywhere. Where they have few bits (±1, quantised), or few rows of them differ, a table
    of all pairs is to be had at once.

    Args:
        metric: the similarity; None means cosine.
        queries: N×D finite features.
        gallery: M×D finite features.
    """

    def __init__(
        self, metric: GSSFMetric | None, queries: Float[Tensor, "n dim"], gallery: Float[Tensor, "m dim"]
    ) -> None:
        self.metric, self.queries, self.gallery = metric, queries, gallery
        self.normalize = metric is None or metric.normalize
        self._items: tuple[slice, CanonicalQueries] | None = None
        self._looking = Lock()

    def pairs(self, rows: Int[Tensor, " pairs"], columns: Int[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
        """Scores of some pairs."""
        if len(rows) < MANY_PAIRS:
            return self._each(rows, columns)
        query, item = self._first_copies[0][rows], self._first_copies[1][columns]  # so many ties are often copies
        pairs, which = torch.unique(query * len(self.gallery) + item, return_inverse=True)
        return self._each(pairs.div(len(self.gallery), rounding_mode="floor"), pairs % len(self.gallery))[which]

    def has_table(self, some: CanonicalQueries) -> bool:
        """Whether scores of all pairs with some queries are to be had at once; several threads may ask."""
        with self._looking:  # what is found out once is kept; `cached_property` has no lock since Python 3.12
            return self._are_short(some) or self._different is not None

    def table(self, some: CanonicalQueries, rows: Int[Tensor, " n"], columns: slice) -> Float[Tensor, "n m"]:
        """Scores of all pairs of some queries and a part of the gallery, where that `has_table`.

        Args:
            some: their canonical side; squares that are not rounded correctly will do, as those of short rows are not
                rounded at all.
            rows: their numbers.
            columns: the part.
        """
        if self._are_short(some):
            return canonical_table(some, self._part(columns))
        assert self._different is not None
        queries, items = self._different.queries[rows], self._different.items[columns]
        return self._different.scores.index_select(0, queries).index_select(1, items)

    def _each(self, rows: Int[Tensor, " pairs"], columns: Int[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
        own, place = rows.unique(return_inverse=True)
        return canonical_scores(canonical_queries(self.metric, self.queries[own]), place, self.gallery, columns)

    def _part(self, columns: slice) -> CanonicalQueries:
        """Items on the terms of a table; the last ones are kept."""
        if self._items is None or self._items[0] != columns:
            self._items = None  # gives its memory back first
            self._items = columns, canonical_items(self.gallery[columns].to(self.queries.device), self.normalize)
        return self._items[1]

    def _are_short(self, some: CanonicalQueries) -> bool:
        return are_short(some) and self._gallery_is_short

    @cached_property
    def _gallery_is_short(self) -> bool:
        size = max(1, ITEMS_AT_ONCE // max(1, self.gallery.shape[1]))
        parts = [slice(start, start + size) for start in range(0, len(self.gallery), size)]
        return all(are_short(self._part(part)) for part in (slice(0, 1), *parts))  # one item tells most often

    @cached_property
    def _different(self) -> _DifferentRows | None:
        """Scores of different rows alone, where these are few: of classes, or of an encoder that has collapsed."""
        (own, queries), (other, items) = (first.unique(return_inverse=True) for first in self._first_copies)
        if len(own) * len(other) > min(MOST_DIFFERENT, len(queries) * len(items) // FEW_DIFFERENT):
            return None
        scores = self._each(own.repeat_interleave(len(other)), other.repeat(len(own)))
        return _DifferentRows(scores.view(len(own), len(other)), queries, items)

    @cached_property
    def _first_copies(self) -> tuple[Int[Tensor, " n"], Int[Tensor, " m"]]:
        """For each query, and for each gallery item, the first that has the same features."""
        own = _first_copies(self.queries)
        return own, own if self.gallery is self.queries else _first_copies(self.gallery).to(own.device)


def _first_copies(features: Float[Tensor, "n dim"]) -> Int[Tensor, " n"]:
    """For each row the first row that equals it."""
    groups = torch.unique(features, dim=0, return_inverse=True)[1]
    first = torch.full((int(groups.max()) + 1,), len(groups), device=groups.device)
    return first.scatter_reduce_(0, groups, torch.arange(len(groups), device=groups.device), "amin")[groups]
