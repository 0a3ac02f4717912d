r"""The fast product of folded queries and gallery rows, with a bound on how far it is from the canonical score.

With rows a, b and what a short dtype makes of them, ã and b̃,

    |fl(ã·b̃) − a·b|  ≤  ‖ã−a‖ ‖b‖ + ‖ã‖ ‖b̃−b‖ + γ ‖ã‖ ‖b̃‖ + ρ |fl(ã·b̃)|

The first two are measured, row by row: rounding hardly ever does its worst to every entry, so what is left undecided is
a third of what the worst case leaves. γ bounds sums in any order: (D + 8) 2⁻²⁴ in float32, (D + 8) 2⁻²² where a
processor adds products of short floats in float32 in its own way, (D + 8) 2⁻⁵³ in float64; ρ is the rounding of the
result to bfloat16.
"""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gssf_plug.metric.exact.canonical import CanonicalQueries
from gssf_plug.metric.exact.pair_products import pair_products
from gssf_plug.metric.exact.sums import power_of_two, scale_rows

__all__ = ["FastQueries", "FastRows", "Open", "fast_dtype", "fast_queries", "fast_rows", "pair_rows"]

ROUNDING = {torch.bfloat16: 2.0**-9, torch.float16: 2.0**-11, torch.float32: 2.0**-24, torch.float64: 2.0**-53}
SUMS = {torch.bfloat16: 2.0**-22, torch.float16: 2.0**-22, torch.float32: 2.0**-24, torch.float64: 2.0**-53}
TINY = {torch.bfloat16: 2.0**-120, torch.float16: 2.0**-24, torch.float32: 2.0**-120, torch.float64: 2.0**-1000}
ROWS_AT_ONCE = 1_048_576  # entries of a gallery that are converted at once: 4 MB, so that they are read once
FEW_QUERIES = 16
SAFE = (1e-15, 1e15)  # norms whose squares neither over- nor underflow in float32


def fast_dtype(device: torch.device) -> torch.dtype:
    """The dtype whose product is fastest on a device: bfloat16 where the CPU multiplies it, else float32."""
    has_instructions = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    # oneDNN may have been told to leave them alone (ONEDNN_MAX_CPU_ISA)
    may_use_them = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    multiplies = device.type == "cpu" and has_instructions() and may_use_them()
    return torch.bfloat16 if multiplies else torch.float32


@dataclass(frozen=True)
class FastRows:
    """A part of a gallery, ready for the fast product.

    Args:
        rows: the rows, of norm about 1 where the metric normalises, else as given times 2^-exponent.
        exponent: exponent of the one power of two that keeps raw rows in range; 0 for unit rows.
        norm: no row is longer.
        rest: no row is farther than this from the row that it stands for.
        factors: what the products with each row are multiplied by; None: by nothing. Saves a few queries the unit rows.
    """

    rows: Float[Tensor, "m dim"]
    exponent: int
    norm: float
    rest: float
    factors: Float[Tensor, " m"] | None = None

    def part(self, columns: slice) -> "FastRows":
        """Some of the rows, on the same terms."""
        factors = None if self.factors is None else self.factors[columns]
        return replace(self, rows=self.rows[columns], factors=factors)

    def to(self, dtype: torch.dtype) -> "FastRows":
        """The same rows in another dtype, one step of rounding farther from what they stand for."""
        if dtype == self.rows.dtype:
            return self
        rows = self.rows.to(dtype)
        away = 0.0
        if dtype.itemsize < 4 and len(rows):
            away = float(torch.linalg.vector_norm(rows.float() - self.rows.float(), dim=1).max()) * (1 + 2.0**-10)
        rest = self.rest + away + rows.shape[1] * TINY[dtype]
        return replace(self, rows=rows, norm=self.norm + away, rest=rest)


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

    rows: Float[Tensor, "n dim"]
    exponent: int
    norms: Float[Tensor, " n"]
    rests: Float[Tensor, " n"]

    def product(self, items: FastRows) -> Float[Tensor, "n m"]:
        """The fast scores, times 2^-(exponents of both sides)."""
        with torch.autocast(self.rows.device.type, enabled=False):
            scores = _product(self.rows, items.rows)
        return scores if items.factors is None else scores.mul_(items.factors)

    def pairs(
        self, rows: Int[Tensor, " pairs"], items: FastRows, columns: Int[Tensor, " pairs"]
    ) -> Float[Tensor, " pairs"]:
        """The fast scores of some pairs alone, in float32 or float64."""
        products = pair_products(self.rows, rows, items.rows, columns)
        return products if items.factors is None else products.mul_(items.factors.index_select(0, columns))

    def margins(self, items: FastRows) -> Float[Tensor, " n"]:
        """How far a fast score of each query may be from the canonical one, apart from the share ρ of itself."""
        dtype, dim = self.rows.dtype, self.rows.shape[1]
        norms = self.norms * (1 + 2.0**-20)
        margins = self.rests * (items.norm + items.rest) + norms * items.rest
        margins = margins + norms * items.norm * (dim + 8) * SUMS[dtype]
        if dtype == torch.float32 and not _multiplies_float32(self.rows.device):
            margins = margins + 3 * norms * items.norm * 2.0**-8  # the product rounds both sides first
        return margins + dim * TINY[dtype]

    @property
    def share(self) -> float:
        """ρ: the rounding of the result to a short dtype, as a share of it."""
        return 1.01 * ROUNDING[self.rows.dtype] if self.rows.dtype.itemsize < 4 else 0.0

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
        share = self.share
        scale = 2.0 ** -max(-1000, min(1000, self.exponent + items.exponent))
        low, high = (values * scale - margins, values * scale + margins)
        # solves r + m + ρ|r| = v and r − m − ρ|r| = v for the fast score r
        low = torch.where(low > 0, low / (1 + share), low / (1 - share))
        high = torch.where(high > 0, high / (1 - share), high / (1 + share))
        return Open(_rounded(low, self.rows.dtype, -math.inf), _rounded(high, self.rows.dtype, math.inf))


def fast_queries(queries: CanonicalQueries, dtype: torch.dtype) -> FastQueries:
    """The query side of the fast product, from the canonical one."""
    factors = power_of_two(queries.exponents)
    if queries.squares is not None:
        factors = torch.where(queries.squares > 0, factors / queries.squares.sqrt(), 0.0)
    peak = float(factors.max()) if len(factors) else 0.0
    exponent = math.frexp(peak)[1] if not 2.0**-30 < peak < 2.0**30 and 0 < peak < math.inf else 0
    exact = queries.folded * (factors * 2.0 ** -max(-1000, min(1000, exponent)))[:, None]
    rows = exact.to(dtype)
    norms = torch.linalg.vector_norm(rows.double(), dim=1)
    rests = torch.linalg.vector_norm(rows.double() - exact, dim=1)
    slack = norms * 2.0**-48 + exact.shape[1] * TINY[dtype]
    return FastQueries(rows, exponent, norms, rests * (1 + 2.0**-40) + slack)


def fast_rows(
    features: Float[Tensor, "m dim"], normalize: bool, dtype: torch.dtype, *, queries: int = 1_000_000
) -> FastRows:
    """The gallery side of the fast product, converted in pieces that fit the cache.

    Args:
        features: a part of the gallery as the user gave it; where it is not finite, neither is `rest`.
        normalize: whether the metric normalises.
        dtype: data type of the product.
        queries: how many will be scored with it. For a few, dividing their scores is cheaper than dividing the rows.
    """
    if not normalize:
        return _raw_rows(features, dtype)
    if dtype == torch.float32 and queries <= FEW_QUERIES and features.dtype.itemsize <= 4:
        values = features.float()
        norms = torch.linalg.vector_norm(values, dim=1)
        if len(norms) and SAFE[0] < float(norms.min()) <= float(norms.max()) < SAFE[1]:
            rest = (features.shape[1] + 8) * 2.0**-24
            return FastRows(values, 0, 1 + rest, rest, factors=1 / norms)
    rows = torch.empty(features.shape, dtype=dtype, device=features.device)
    size = max(1, ROWS_AT_ONCE // max(1, features.shape[1]))
    rests = [_unit_rows(part, out) for part, out in zip(features.split(size), rows.split(size), strict=True)]
    rest = math.nan if any(map(math.isnan, rests)) else max(rests, default=0.0)
    return FastRows(rows, 0, 1 + rest, rest)


def pair_rows(features: Float[Tensor, "m dim"], normalize: bool) -> FastRows:
    """The gallery side of float32 scores of single pairs; features in float32 are not copied."""
    values = features.float()
    size = max(1, ROWS_AT_ONCE // max(1, features.shape[1]))  # torch converts what it takes the norm of
    norms = torch.cat([torch.linalg.vector_norm(part, dim=1, dtype=torch.float64) for part in values.split(size)])
    smallest, largest = (float(bound) for bound in torch.aminmax(norms)) if len(norms) else (1.0, 1.0)
    if features.dtype.itemsize > 4 or not SAFE[0] < smallest <= largest < SAFE[1]:
        return fast_rows(features, normalize, torch.float32)
    if normalize:
        return FastRows(values, 0, 1 + 2.0**-20, 2.0**-22, factors=norms.reciprocal_().float())
    return FastRows(values, 0, largest * (1 + 2.0**-20), features.shape[1] * TINY[torch.float32])


def _unit_rows(features: Tensor, out: Tensor) -> float:
    """Write unit rows into `out`; the largest distance from the true ones, NaN where one is not finite."""
    precise = torch.float64 if out.dtype == torch.float64 else torch.float32
    values = features.to(precise)
    # summed in float64, a norm adds nothing to what a float32 product leaves open; beside bfloat16 it would not show
    exactly = torch.float64 if out.dtype == torch.float32 else None
    norms = torch.linalg.vector_norm(values, dim=1, keepdim=True, dtype=exactly).to(precise)
    smallest, largest = (float(bound) for bound in torch.aminmax(norms)) if len(norms) else (1.0, 1.0)
    if not SAFE[0] < smallest <= largest < SAFE[1]:
        values = scale_rows(features)[0]
        norms = torch.linalg.vector_norm(values, dim=1, keepdim=True)
        values = values / norms.masked_fill(norms == 0, 1.0)
        if not bool(norms.isfinite().all()):
            return math.nan
        norms = torch.ones_like(norms)
    values = values / norms
    out.copy_(values)
    dim = features.shape[1]
    # a root halves the error of the sum of squares beneath it
    steps = 8.0 if exactly is not None else dim / 2 + 8
    computed = steps * (2.0**-24 if precise == torch.float32 else 2.0**-53) + dim * TINY[out.dtype]
    if out.dtype == precise:
        return computed
    rests = torch.linalg.vector_norm(values.sub_(out.to(values.dtype)), dim=1)
    return float(rests.max()) * (1 + 2.0**-10) + computed if len(rests) else 0.0


def _raw_rows(features: Tensor, dtype: torch.dtype) -> FastRows:
    largest = float(features.abs().max()) if features.numel() else 0.0
    ordinary = 2.0**-30 < largest < 2.0**30 and dtype != torch.float16
    exponent = math.frexp(largest)[1] if largest and not ordinary else 0
    scale = 2.0 ** -max(-1000, min(1000, exponent))
    exact = features.double() * scale
    rows = exact.to(dtype)
    norm = float(torch.linalg.vector_norm(exact, dim=1).max()) if len(exact) else 0.0
    rest = float(torch.linalg.vector_norm(exact - rows, dim=1).max()) if len(exact) else 0.0
    slack = norm * 2.0**-48 + features.shape[1] * TINY[dtype]
    return FastRows(rows, exponent, (norm + rest) * (1 + 2.0**-40) + slack, rest * (1 + 2.0**-40) + slack)


def _product(rows: Float[Tensor, "n dim"], items: Float[Tensor, "m dim"]) -> Float[Tensor, "n m"]:
    """rows @ items.T, in float32 on a CPU by oneDNN, as in compiled models: up to twice as fast as torch's BLAS."""
    op = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if rows.dtype == torch.float32 else None
    if op is None or rows.device.type != "cpu" or not rows.numel() or not items.numel():
        return rows @ items.T
    product: Tensor = op(rows, items, None, "none", [], "")
    return product


def _rounded(values: Tensor, dtype: torch.dtype, towards: float) -> Tensor:
    """In `dtype`, away from what is left open."""
    rounded = values.to(dtype)
    inward = rounded.double() > values if towards < 0 else rounded.double() < values
    moved = torch.nextafter(rounded, torch.full_like(rounded, towards))
    return torch.where(inward, moved, rounded)


def _multiplies_float32(device: torch.device) -> bool:
    """Whether a float32 product is one, and not by the user's switch a faster one of rounded factors."""
    backend = "cuda" if device.type == "cuda" else "mkldnn"
    precision: str = getattr(torch.backends, backend).matmul.fp32_precision
    return precision in ("none", "ieee")
