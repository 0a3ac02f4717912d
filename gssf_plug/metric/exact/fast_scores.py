r"""The fast product of folded queries and gallery rows, with a bound on how far it is from the canonical score.

With rows a, b and what a short dtype makes of them, ã and b̃,

    |fl(ã·b̃) − a·b|  ≤  ‖ã−a‖ ‖b‖ + ‖ã‖ ‖b̃−b‖ + γ ‖ã‖ ‖b̃‖ + ρ |fl(ã·b̃)|

The first two are measured, row by row. γ bounds sums in any order: (D + 8) 2⁻²⁴ in float32, (D + 8) 2⁻²² where a
processor adds products of short floats in float32 in its own way, (D + 8) 2⁻⁵³ in float64; ρ is the rounding of the
result to bfloat16. A value that fast scores are compared with is rounded as they were instead, which keeps the order.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from gssf_plug.metric.exact.canonical import CanonicalQueries
from gssf_plug.metric.exact.fast_rows import TINY, FastRows
from gssf_plug.metric.exact.pair_products import converted_products, pair_products

__all__ = ["FastQueries", "Open", "exact_pieces", "fast_queries"]

ENTRIES_AT_ONCE = 262_144  # of queries, 2 MB in float64: what is made of them stays in the cache
ROUNDING = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
SUMS = {torch.bfloat16: 2.0**-22, torch.float16: 2.0**-22, torch.float32: 2.0**-24, torch.float64: 2.0**-53}


class Open(NamedTuple):
    """Where a fast score decides against a value: below `low` the canonical score is less, above `high` it is more."""

    low: Tensor
    high: Tensor


@dataclass(frozen=True)
class FastQueries:
    """Folded queries, ready for the fast product.

    Args:
        rows: the folded queries in the short data type, times 2^-exponent.
        exponent: exponent of one power of two for all rows; 0 unless the weights of the metric, or raw features, are
            extreme.
        norms: ‖ã‖ of each row.
        rests: ‖ã − a‖ of each.
    """

    rows: Shaped[Tensor, "n dim"]
    exponent: int
    norms: Float[Tensor, " n"]
    rests: Float[Tensor, " n"]

    def part(self, rows: slice) -> "FastQueries":
        """Some of the queries."""
        return FastQueries(self.rows[rows], self.exponent, self.norms[rows], self.rests[rows])

    def product(self, items: FastRows, *, out: Float[Tensor, "n m"] | None = None) -> Float[Tensor, "n m"]:
        """The fast scores, times 2^-(exponents of both sides); in float64 where `out` is, if that is given."""
        with torch.autocast(self.rows.device.type, enabled=False):
            scores = _product(self.rows, items.rows) if out is None else torch.mm(self.rows, items.rows.T, out=out)
        return scores if items.factors is None else scores.mul_(items.factors)

    def pairs(
        self, rows: Int[Tensor, " pairs"], items: FastRows, columns: Int[Tensor, " pairs"]
    ) -> Float[Tensor, " pairs"]:
        """The fast scores of some pairs alone, in float32 or float64."""
        multiply = pair_products if items.rows.dtype == self.rows.dtype else converted_products
        products = multiply(self.rows, rows, items.rows, columns)
        return products if items.factors is None else products.mul_(items.factors.index_select(0, columns))

    def margins(self, items: FastRows, *, of_pairs: bool = False) -> Float[Tensor, " n"]:
        """How far a fast score of each query may be from the canonical one, apart from the share ρ of itself.

        Args:
            items: the gallery's part.
            of_pairs: whether the scores are those of `pairs`, which no switch of the user makes less precise.
        """
        dtype, dim = self.rows.dtype, self.rows.shape[1]
        sums = (dim + 8) * SUMS.get(dtype, 0.0)
        if dtype == torch.float32 and not of_pairs and not _multiplies_float32(self.rows.device):
            sums += 3 * 2.0**-8  # the product rounds both sides first
        by_norm = (items.rest + items.norm * sums) * (1 + 2.0**-20)
        margins = (self.rests * (items.norm + items.rest)).add_(self.norms, alpha=by_norm)
        return margins.add_(dim * TINY[dtype])

    @property
    def share(self) -> float:
        """ρ: the rounding of the result to a short dtype, as a share of it."""
        return 1.01 * ROUNDING.get(self.rows.dtype, 0.0)

    def scale(self, items: FastRows) -> float:
        """What a fast score is multiplied by to give the score: a power of two, nearly always 1."""
        return 2.0 ** max(-1000, min(1000, self.exponent + items.exponent))

    def between(self, scores: Float[Tensor, "..."], margins: Float[Tensor, "..."], items: FastRows) -> Open:
        """Between what the canonical scores of pairs with these fast scores lie, in float64."""
        scale, values = self.scale(items), scores.double()
        slack = margins + values.abs() * self.share if self.share else margins  # ∞ · 0 is no number
        return Open((values - slack) * scale, (values + slack) * scale)

    def around(self, values: Float[Tensor, "n ..."], items: FastRows, margins: Tensor | None = None) -> Open:
        """For each canonical score the fast scores that leave open which of the two is larger.

        Args:
            values: canonical scores, one row per query (or of any shape that `margins` broadcasts to).
            items: the gallery's part.
            margins: default those of the queries, for rows of `values`.

        Returns:
            Open: `low` and `high` in the dtype of the product, in the shape of `values`.
        """
        if margins is None:
            margins = self.margins(items).reshape(-1, *[1] * (values.ndim - 1))
        values = values * 2.0 ** -max(-1000, min(1000, self.exponent + items.exponent))
        return Open(self._outward(values - margins, -math.inf), self._outward(values + margins, math.inf))

    def least(self, values: Float[Tensor, " n"], items: FastRows) -> Float[Tensor, " n"]:
        """The `low` of `around` alone, one value per query."""
        scale = 2.0 ** -max(-1000, min(1000, self.exponent + items.exponent))
        return self._outward(values * scale - self.margins(items), -math.inf)

    def _outward(self, values: Tensor, towards: float) -> Tensor:
        """Bounds of a product before it is rounded, as bounds of what it is rounded to."""
        rounded = values.to(self.rows.dtype)
        if self.share:  # rounding keeps the order: what lies beyond a value is not rounded to what lies before its own
            return rounded
        # infinity is no bound at all; the next number is so near that it costs less than to ask
        moved = torch.nextafter(rounded, rounded.new_tensor(towards))
        return torch.where(values.isinf(), rounded, moved)


def fast_queries(queries: CanonicalQueries, dtype: torch.dtype) -> FastQueries:
    """The query side of the fast product, from the canonical one."""
    exponent, pieces = exact_pieces(queries)
    parts = []
    for exact in pieces:
        rows = exact.to(dtype)
        norms = torch.linalg.vector_norm(rows.double(), dim=1)
        rests = torch.linalg.vector_norm(rows.double() - exact, dim=1)
        parts.append((rows, norms, rests * (1 + 2.0**-40) + norms * 2.0**-48 + exact.shape[1] * TINY[dtype]))
    rows, norms, rests = (torch.cat(part) for part in zip(*parts, strict=True))
    return FastQueries(rows, exponent, norms, rests)


def exact_pieces(queries: CanonicalQueries) -> tuple[int, Iterator[Float[Tensor, "some dim"]]]:
    """Folded queries times their factors, some at a time, times 2^-exponent; and that exponent, mostly 0."""
    factors = queries.factors
    peak = float(factors.max()) if len(factors) else 0.0
    exponent = math.frexp(peak)[1] if not 2.0**-30 < peak < 2.0**30 and 0 < peak < math.inf else 0
    factors = factors * 2.0 ** -max(-1000, min(1000, exponent))
    size = max(1, ENTRIES_AT_ONCE // max(1, queries.folded.shape[1]))
    pieces = zip(queries.folded.split(size), factors.split(size), strict=True)
    return exponent, (folded * factor[:, None] for folded, factor in pieces)


def _product(rows: Shaped[Tensor, "n dim"], items: Shaped[Tensor, "m dim"]) -> Float[Tensor, "n m"]:
    """rows @ items.T, in float32 on a CPU by oneDNN, as in compiled models: up to twice as fast as torch's BLAS."""
    op = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if rows.dtype == torch.float32 else None
    if op is None or rows.device.type != "cpu" or not rows.numel() or not items.numel():
        return rows @ items.T
    product: Tensor = op(rows, items, None, "none", [], "")
    return product


def _multiplies_float32(device: torch.device) -> bool:
    """Whether a float32 product is one, and not by the user's switch a faster one of rounded factors."""
    backend = "cuda" if device.type == "cuda" else "mkldnn"
    precision: str = getattr(torch.backends, backend).matmul.fp32_precision
    return precision in ("none", "ieee")
