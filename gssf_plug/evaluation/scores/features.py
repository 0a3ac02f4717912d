"""Scores of features under a metric: fast ones with a bound, and closer ones of single pairs."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gssf_plug.evaluation.options import finite_scores
from gssf_plug.evaluation.scores.protocols import ALL, ScoredPart
from gssf_plug.metric import GSSFMetric
from gssf_plug.metric.exact.canonical import near_queries
from gssf_plug.metric.exact.fast_rows import FastRows, fast_rows, pair_rows
from gssf_plug.metric.exact.fast_scores import FastQueries, Open, fast_queries
from gssf_plug.metric.exact.int8.two_digits import DigitPart, DigitQueries, DigitRows, digit_queries, digit_rows
from gssf_plug.metric.exact.int8.whole_numbers import fits_int8, multiplies_int8
from gssf_plug.metric.exact.pair_products import converted_products
from gssf_plug.metric.exact.sums import scale_rows
from gssf_plug.metric.exact_scores import CanonicalScores

__all__ = ["FeatureScores", "counted_scores"]

PART_ENTRIES = 33_554_432  # of a gallery that is converted at once: 128 MB in float32
ROW_ENTRIES = 2_097_152  # of queries that are made ready together: 16 MB in float64
PAIRS_AT_ONCE = 262_144  # entries of rows whose norms are taken at once: 2 MB in float64
MANY_QUERIES, MANY_PAIRS = 1536, 2**24  # below, making the gallery's digits costs more than their products spare


class FeatureScores:
    """Scores of features under a metric.

    Args:
        metric: the similarity; None means cosine.
        queries: N×D finite features.
        gallery: M×D finite features.
        dtype: data type of the fast product; default float32. bfloat16 pays where few scores come near a bound; int8,
            which stands for two digits of it, where there are many queries.
        columns_at_once: gallery items whose scores are held at once; None (default) leaves that to the queries.
    """

    def __init__(
        self,
        metric: GSSFMetric | None,
        queries: Float[Tensor, "n dim"],
        gallery: Float[Tensor, "m dim"],
        dtype: torch.dtype = torch.float32,
        columns_at_once: int | None = None,
    ) -> None:
        self.metric, self.queries, self.gallery, self.dtype = metric, queries, gallery, dtype
        self.normalize = metric is None or metric.normalize
        self.converted_at_once = max(1, PART_ENTRIES // max(1, gallery.shape[1]))
        held = min(columns_at_once or self.converted_at_once, self.converted_at_once)
        self.converted_at_once -= self.converted_at_once % held  # whole parts
        self.parts = [slice(start, min(start + held, len(gallery))) for start in range(0, len(gallery), held)]
        self.rows_together = max(1, ROW_ENTRIES // max(1, queries.shape[1]))
        self._items: tuple[int, FastRows | DigitRows] | None = None  # what was converted last, and from where on
        self._pair_items: tuple[slice, FastRows] | None = None
        self.exact, self.wants_table = CanonicalScores(metric, queries, gallery), False

    def of(self, rows: slice) -> "_FeatureQueries":
        """Some of the queries."""
        return _FeatureQueries(self, rows)

    def look_closer(self) -> bool:
        """Leave the short dtype, which leaves much open where features share a direction; False if it was left."""
        if short := self.dtype.itemsize < 4:
            self.dtype, self._items = torch.float32, None
        return short

    @property
    def has_items(self) -> bool:
        """Whether any part of the gallery was made ready for the fast product."""
        return self._items is not None

    def items(self, columns: slice) -> FastRows | DigitRows:
        """A part of the gallery, ready for the fast product; what was converted last is kept."""
        start = columns.start - columns.start % self.converted_at_once
        if self._items is None or self._items[0] != start:
            self._items = None  # gives its memory back first
            stop = min(start + self.converted_at_once, len(self.gallery))
            self._items = start, self.converted(slice(start, stop), self.dtype)
        return self._items[1].part(slice(columns.start - start, columns.stop - start))

    def pair_items(self, columns: slice) -> FastRows:
        """A part of the gallery, ready for float32 scores of single pairs; the last one is kept."""
        if self._pair_items is None or self._pair_items[0] != columns:
            self._pair_items = None
            self._pair_items = columns, pair_rows(self.gallery[columns].to(self.queries.device), self.normalize)
        return self._pair_items[1]

    def canonical(self, rows: Int[Tensor, " pairs"], columns: Int[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
        """Canonical scores; where there are many, each pair of different features is scored once."""
        return self.exact.pairs(rows, columns)

    @cached_property
    def longest_item(self) -> float:
        """The largest norm of what queries are multiplied with."""
        if self.normalize:
            return 1.0
        return max(float(torch.linalg.vector_norm(part.double(), dim=1).max()) for part in self.gallery.split(65_536))

    @cached_property
    def item_norms(self) -> Float[Tensor, " m"]:
        """Norms of the gallery in float64; of float64 rows, whose squares may overflow, after `scale_rows`."""
        pieces = self.gallery.split(max(1, PAIRS_AT_ONCE // max(1, self.gallery.shape[1])))
        if self.gallery.dtype == torch.float64:
            pieces = tuple(scale_rows(piece)[0] for piece in pieces)
        norms = torch.cat([torch.linalg.vector_norm(piece, dim=1, dtype=torch.float64) for piece in pieces])
        return norms.masked_fill_(norms == 0, 1.0).to(self.queries.device)

    def converted(self, columns: slice, dtype: torch.dtype) -> FastRows | DigitRows:
        """A part of the gallery, or one in some items of it, ready for the product in another dtype."""
        if dtype == torch.int8:
            return digit_rows(self.pair_items(columns))
        return fast_rows(self.gallery[columns].to(self.queries.device), self.normalize, dtype)


def counted_scores(
    metric: GSSFMetric | None, queries: Float[Tensor, "n dim"], gallery: Float[Tensor, "m dim"], chunks: Sequence[slice]
) -> FeatureScores:
    """Scores in which positives are counted one by one: by two digits where these are faster than float32.

    Args:
        metric: the similarity; None means cosine.
        queries: N×D finite features.
        gallery: M×D finite features.
        chunks: the queries that this process ranks.
    """
    scores, asked = FeatureScores(metric, queries, gallery), sum(rows.stop - rows.start for rows in chunks)
    many = asked >= MANY_QUERIES and asked * len(gallery) >= MANY_PAIRS and fits_int8(queries.shape[1])
    if many and scores.normalize and queries.device.type == "cpu" and multiplies_int8():
        scores.dtype = torch.int8
    return scores


class _FeatureQueries:
    """Some queries of `FeatureScores`."""

    def __init__(self, scores: FeatureScores, rows: slice) -> None:
        self.scores, self.start, self.parts = scores, rows.start, scores.parts
        self.near = near_queries(scores.metric, scores.queries[rows], scores.normalize)
        self._fast: dict[torch.dtype, FastQueries] = {}
        norms = torch.linalg.vector_norm(self.near.folded, dim=1) * self.near.factors
        self.slack = norms * scores.longest_item * ((2 * self.near.folded.shape[1] + 64) * 2.0**-52)

    @cached_property
    def digits(self) -> DigitQueries | None:
        """The queries as two digits; None where these do not hold them."""
        return digit_queries(self.near)

    def sampled(self, columns: slice, rows: slice, step: int) -> ScoredPart | None:
        if self.scores.dtype != torch.int8 or self.scores.has_items:
            return None
        items = self.scores.converted(slice(columns.start, columns.stop, step), torch.int8)
        queries = digit_queries(self.near.part(rows))
        if queries is None or not isinstance(items, DigitRows) or not queries.fits(items):
            self.scores.look_closer()
            return None
        return DigitPart(queries, items)

    def side_by_side(self, columns: slice) -> int:
        # in this order what torch's threads share comes first, and what threads of our own do together
        digits = self.digits if self.scores.dtype == torch.int8 else None
        items = self.scores.items(columns)
        if isinstance(items, FastRows):  # torch's threads share each product
            return 1
        if digits is None or not digits.fits(items):
            self.scores.look_closer()
            return 1
        return torch.get_num_threads()

    def part(self, columns: slice, rows: slice = ALL, *, finest: bool = False) -> ScoredPart:
        items = self.scores.converted(columns, torch.float64) if finest else self.scores.items(columns)
        if isinstance(items, FastRows):
            return _FeaturePart(self.fast(items.rows.dtype, rows), items)
        assert self.digits is not None  # as `side_by_side` found
        return DigitPart(self.digits.part(rows), items)

    def pairs(self, part: slice, rows: Int[Tensor, " pairs"], columns: Int[Tensor, " pairs"]) -> Open:
        queries, items = self.fast(torch.float32), self.scores.pair_items(part)
        return queries.between(queries.pairs(rows, items, columns), queries.margins(items).index_select(0, rows), items)

    def fast(self, dtype: torch.dtype, rows: slice = ALL) -> FastQueries:
        """Some of the queries, ready for a product."""
        if dtype not in self._fast:
            queries = fast_queries(self.near, dtype)
            # the norm that `near` divides by is not rounded correctly
            unsure = queries.norms * ((self.near.folded.shape[1] + 8) * 2.0**-52)
            self._fast[dtype] = replace(queries, rests=queries.rests + unsure)
        return self._fast[dtype].part(rows)

    def close(self, rows: Int[Tensor, " pairs"], columns: Int[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
        products = converted_products(
            self.near.folded, rows, self.scores.gallery, columns, scaled=self.scores.normalize
        )
        products = products.mul_(self.near.factors.index_select(0, rows))
        if self.scores.normalize:
            return products.div_(self.scores.item_norms.index_select(0, columns))
        return finite_scores(products[None])[0]

    def canonical(self, rows: Int[Tensor, " pairs"], columns: Int[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
        return self.scores.canonical(rows + self.start, columns)

    def look_closer(self) -> bool:
        return self.scores.look_closer()

    @property
    def has_table(self) -> bool:
        return self.scores.exact.has_table(self.near)

    @property
    def wants_table(self) -> bool:
        return self.scores.wants_table and self.has_table

    def table(self, columns: slice, rows: slice = ALL) -> Float[Tensor, "n m"]:
        self.scores.wants_table = True
        numbers = torch.arange(self.start, self.start + len(self.slack), device=self.slack.device)[rows]
        return self.scores.exact.table(self.near.part(rows), numbers, columns)


class _FeaturePart:
    """Fast scores of some queries with a part of the gallery."""

    def __init__(self, queries: FastQueries, items: FastRows) -> None:
        self._fast, self._items = queries, items
        self.fast = queries.product(items)
        self.can_be_finer, self.can_be_closer = self.fast.dtype != torch.float64, self.fast.dtype.itemsize == 2

    def around(self, low: Float[Tensor, "n k"], high: Float[Tensor, "n k"]) -> Open:
        return Open(self._fast.around(low, self._items).low, self._fast.around(high, self._items).high)

    def between(self, rows: Int[Tensor, " pairs"], fast: Float[Tensor, " pairs"]) -> Open | None:
        if self.can_be_closer:
            return None
        return self._fast.between(fast, self._fast.margins(self._items).index_select(0, rows), self._items)

    def around_items(self, low: Float[Tensor, " m"], high: Float[Tensor, " m"]) -> Open:
        widest = self._fast.margins(self._items).max()
        bounds = (self._fast.around(one, self._items, widest) for one in (low, high))
        return Open(next(bounds).low, next(bounds).high)
