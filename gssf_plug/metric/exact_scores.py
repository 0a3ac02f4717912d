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

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gssf_plug.metric.exact.canonical import CanonicalQueries, canonical_queries, canonical_scores
from gssf_plug.metric.exact.fast_rows import FastRows, fast_dtype, fast_rows
from gssf_plug.metric.exact.fast_scores import FastQueries, Open, fast_queries
from gssf_plug.metric.metric import GSSFMetric

__all__ = ["ExactScores", "ScoredChunk"]


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
