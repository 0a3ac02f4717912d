r"""What ranks are counted from: fast scores of all pairs, and a closer look at the few that the fast ones leave open.

Four looks, each with a bound on how far it is from the canonical score (`gssf_plug.metric.exact.canonical`): a result
depends on no chunk, thread, process or device.

    fast        one product in a short dtype; open within about 10⁻⁵ (float32), 10⁻³ (bfloat16)
    pairs       after a product in bfloat16, float32 products of single pairs; open within about 10⁻⁵
    close       float64 products of single pairs; open within about 10⁻¹³, which is to say at ties
    canonical   correctly rounded, one value for two rows; equal means tied

Where a chunk leaves much open (features that hardly differ), a float64 product takes the place of the fast one.
"""

from dataclasses import replace
from functools import cached_property
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gssf_plug.evaluation.options import finite_scores
from gssf_plug.metric import GSSFMetric
from gssf_plug.metric.exact.canonical import CanonicalQueries, fold_exactly
from gssf_plug.metric.exact.fast_rows import FastRows, fast_rows, pair_rows
from gssf_plug.metric.exact.fast_scores import FastQueries, Open, fast_queries
from gssf_plug.metric.exact.pair_products import converted_products
from gssf_plug.metric.exact.sums import scale_rows
from gssf_plug.metric.exact_scores import CanonicalScores

__all__ = ["FeatureScores", "GivenScores", "ScoredPart", "ScoredQueries", "Scores", "slices"]

PART_ENTRIES = 33_554_432  # of a gallery that is converted at once: 128 MB in float32
ROW_ENTRIES = 2_097_152  # of queries that are made ready together: 16 MB in float64
PAIRS_AT_ONCE = 262_144  # entries of rows whose norms are taken at once: 2 MB in float64
ALL = slice(None)


def slices(count: int, size: int) -> list[slice]:
    """Slices of `count` things, of `size` each, at least 1, but the last."""
    size = max(1, size)
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


class ScoredPart(Protocol):
    """Some queries against a part of the gallery."""

    fast: Float[Tensor, "n m"]
    can_be_finer: bool

    def around(self, low: Float[Tensor, "n k"], high: Float[Tensor, "n k"]) -> Open:
        """Fast scores below `low` of the result are certainly below `low`, those above its `high` above `high`."""
        ...

    def between(self, rows: Int[Tensor, " pairs"], fast: Float[Tensor, " pairs"]) -> Open | None:
        """Between what canonical scores lie; None where products of single pairs tell it more closely."""
        ...

    def around_items(self, low: Float[Tensor, " m"], high: Float[Tensor, " m"]) -> Open:
        """The same for one value per item, whichever query is compared with it."""
        ...


class ScoredQueries(Protocol):
    """Some queries against the whole gallery."""

    slack: Float[Tensor, " n"]
    parts: list[slice]

    def part(self, columns: slice, rows: slice = ALL, *, finest: bool = False) -> ScoredPart:
        """Fast scores of all or some of them with a part of the gallery, which may be changed in place.

        `finest` asks for a float64 product.
        """
        ...

    def pairs(self, part: slice, rows: Int[Tensor, " pairs"], columns: Int[Tensor, " pairs"]) -> Open:
        """Between what the canonical scores of some pairs lie by float32 products; `columns` count within the part."""
        ...

    def close(self, rows: Int[Tensor, " pairs"], columns: Int[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
        """Scores in float64, within `slack` of their row from the canonical ones."""
        ...

    def canonical(self, rows: Int[Tensor, " pairs"], columns: Int[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
        """Canonical scores; equal means tied."""
        ...

    def look_closer(self) -> bool:
        """Multiply in float32 from the next part on; False where fast scores were no shorter before."""
        ...

    @property
    def has_table(self) -> bool:
        """Whether canonical scores of all pairs are to be had at once."""
        ...

    @property
    def wants_table(self) -> bool:
        """Whether they were asked for before: features of few values tie everywhere."""
        ...

    def table(self, columns: slice, rows: slice = ALL) -> Float[Tensor, "n m"]:
        """Those of some of them with a part of the gallery, which may be changed in place."""
        ...


class Scores(Protocol):
    """All queries against the whole gallery; `rows_together` of them may be asked for at once."""

    parts: list[slice]
    rows_together: int

    def of(self, rows: slice) -> ScoredQueries:
        """Some of the queries."""
        ...

    def canonical(self, rows: Int[Tensor, " pairs"], columns: Int[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
        """Canonical scores; equal means tied."""
        ...


class FeatureScores:
    """Scores of features under a metric.

    Args:
        metric: the similarity; None means cosine.
        queries: N×D finite features.
        gallery: M×D finite features.
        dtype: data type of the fast product; default float32. bfloat16 pays where few scores come near a bound.
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
        self._items: tuple[int, FastRows] | None = None  # what was converted last, and from where on
        self._pair_items: tuple[slice, FastRows] | None = None
        self.exact, self.wants_table = CanonicalScores(metric, queries, gallery), False

    def of(self, rows: slice) -> "_FeatureQueries":
        """Some of the queries."""
        return _FeatureQueries(self, rows)

    def look_closer(self) -> bool:
        """Leave the short dtype, which leaves much open where features share a direction; False if it was left."""
        if short := self.dtype.itemsize == 2:
            self.dtype, self._items = torch.float32, None
        return short

    def items(self, columns: slice) -> FastRows:
        """A part of the gallery, ready for the fast product; what was converted last is kept."""
        start = columns.start - columns.start % self.converted_at_once
        if self._items is None or self._items[0] != start:
            self._items = None  # gives its memory back first
            self._items = start, self.converted(slice(start, start + self.converted_at_once), self.dtype)
        items = self._items[1]
        return replace(items, rows=items.rows[columns.start - start : columns.stop - start])

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

    def converted(self, columns: slice, dtype: torch.dtype) -> FastRows:
        """A part of the gallery, ready for the product in another dtype."""
        return fast_rows(self.gallery[columns].to(self.queries.device), self.normalize, dtype)


class _FeatureQueries:
    """Some queries of `FeatureScores`."""

    def __init__(self, scores: FeatureScores, rows: slice) -> None:
        self.scores, self.start, self.parts = scores, rows.start, scores.parts
        self.near = _near_queries(scores.metric, scores.queries[rows], scores.normalize)
        self._fast: dict[torch.dtype, FastQueries] = {}
        norms = torch.linalg.vector_norm(self.near.folded, dim=1) * self.near.factors
        self.slack = norms * scores.longest_item * ((2 * self.near.folded.shape[1] + 64) * 2.0**-52)

    def part(self, columns: slice, rows: slice = ALL, *, finest: bool = False) -> "_FeaturePart":
        items = self.scores.converted(columns, torch.float64) if finest else self.scores.items(columns)
        return _FeaturePart(self.fast(items.rows.dtype, rows), items)

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


def _near_queries(metric: GSSFMetric | None, queries: Float[Tensor, "n dim"], normalize: bool) -> CanonicalQueries:
    """Near the canonical side, whose squares are correctly rounded and cost more than all else here."""
    pieces = queries.split(max(1, PAIRS_AT_ONCE // max(1, queries.shape[1])))  # what is made of each stays in the cache
    folded = torch.empty(queries.shape, dtype=torch.float64, device=queries.device)
    exponents, squares = [], []
    for piece, out in zip(pieces, folded.split(len(pieces[0])), strict=True):
        values, exponent = scale_rows(piece)
        squares.append(values.square().sum(1))
        rows, own_exponent = scale_rows(values if metric is None else fold_exactly(metric, values))
        out.copy_(rows)
        exponents.append(own_exponent if normalize else own_exponent + exponent)
    return CanonicalQueries(folded, torch.cat(exponents), torch.cat(squares) if normalize else None)


class _FeaturePart:
    """Fast scores of some queries with a part of the gallery."""

    def __init__(self, queries: FastQueries, items: FastRows) -> None:
        self._fast, self._items = queries, items
        self.fast = queries.product(items)
        self.can_be_finer = self.fast.dtype != torch.float64

    def around(self, low: Float[Tensor, "n k"], high: Float[Tensor, "n k"]) -> Open:
        return Open(self._fast.around(low, self._items).low, self._fast.around(high, self._items).high)

    def between(self, rows: Int[Tensor, " pairs"], fast: Float[Tensor, " pairs"]) -> Open | None:
        if fast.dtype.itemsize == 2:
            return None
        return self._fast.between(fast, self._fast.margins(self._items).index_select(0, rows), self._items)

    def around_items(self, low: Float[Tensor, " m"], high: Float[Tensor, " m"]) -> Open:
        widest = self._fast.margins(self._items).max()
        bounds = (self._fast.around(one, self._items, widest) for one in (low, high))
        return Open(next(bounds).low, next(bounds).high)


class GivenScores:
    """A matrix of scores that somebody else made: exact as it is.

    Args:
        matrix: N×M.
    """

    def __init__(self, matrix: Float[Tensor, "n m"]) -> None:
        self.matrix, self.parts, self.rows_together = matrix, [slice(0, matrix.shape[1])], 1

    def canonical(self, rows: Int[Tensor, " pairs"], columns: Int[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
        """The given scores."""
        return self.matrix[rows, columns].double()

    def of(self, rows: slice) -> "_GivenQueries":
        """Some of the queries."""
        return _GivenQueries(self.matrix[rows])


class _GivenQueries:
    def __init__(self, matrix: Tensor) -> None:
        self.matrix, self.parts = matrix, [slice(0, matrix.shape[1])]
        self.slack, self.has_table = matrix.new_zeros(len(matrix), dtype=torch.float64), True
        self.wants_table = False

    def part(self, columns: slice, rows: slice = ALL, *, finest: bool = False) -> "_GivenPart":
        return _GivenPart(self.matrix[rows, columns])

    def look_closer(self) -> bool:
        return False

    def pairs(self, part: slice, rows: Tensor, columns: Tensor) -> Open:
        values = self.close(rows, columns + part.start)
        return Open(values, values)

    def close(self, rows: Tensor, columns: Tensor) -> Tensor:
        return self.matrix[rows, columns].double()

    canonical = close

    def table(self, columns: slice, rows: slice = ALL) -> Tensor:
        return self.matrix[rows, columns].to(torch.float64, copy=True)


class _GivenPart:
    def __init__(self, matrix: Tensor) -> None:
        self.can_be_finer, self.fast = False, finite_scores(matrix.clone())

    def around(self, low: Tensor, high: Tensor) -> Open:
        return Open(low.to(self.fast), high.to(self.fast))

    around_items = around

    def between(self, rows: Tensor, fast: Tensor) -> Open:
        return Open(fast.double(), fast.double())
