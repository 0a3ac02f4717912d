r"""Gallery rows in a short dtype, with what is known about how far they are from the rows that they stand for.

Rounding hardly ever does its worst to every entry, so its effect is measured, row by row: what is left undecided is a
third of what the worst case leaves.
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from gssf_plug.metric.exact.sums import scale_rows

__all__ = [
    "TINY",
    "FastRows",
    "fast_dtype",
    "fast_rows",
    "given_rows",
    "pair_rows",
    "plain_rows",
    "raw_exponent",
]

TINY = {torch.bfloat16: 2.0**-120, torch.float16: 2.0**-24, torch.float32: 2.0**-120, torch.float64: 2.0**-1000}
ROWS_AT_ONCE = 131_072  # entries of a gallery that are converted at once: 1 MB in float64, so that they are read once
SAFE = (1e-15, 1e15)  # norms whose squares neither over- nor underflow in float32


def fast_dtype(device: torch.device) -> torch.dtype:
    """The dtype whose product of floats is fastest on a device: bfloat16 where the CPU multiplies it, else float32."""
    has_instructions = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    # oneDNN may have been told to leave them alone (ONEDNN_MAX_CPU_ISA)
    may_use_them = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    multiplies = device.type == "cpu" and has_instructions() and may_use_them()
    return torch.bfloat16 if multiplies else torch.float32


@dataclass(frozen=True)
class FastRows:
    """A part of a gallery, ready for the fast product.

    Args:
        rows: the rows, of norm about 1 where the metric normalises, else as given times 2^-exponent; with factors, in
            any float dtype that products of pairs convert.
        exponent: exponent of the one power of two that keeps raw rows in range; 0 for unit rows.
        norm: no row, times its factor, is longer.
        rest: no row, times its factor, is farther than this from the row that it stands for.
        factors: factor of the products with each row; None for none. Saves copying rows as given.
    """

    rows: Shaped[Tensor, "m dim"]
    exponent: int
    norm: float
    rest: float
    factors: Float[Tensor, " m"] | None = None

    def part(self, columns: slice) -> "FastRows":
        """Some of the rows, on the same terms."""
        return replace(self, rows=self.rows[columns], factors=None if self.factors is None else self.factors[columns])

    def to(self, dtype: torch.dtype) -> "FastRows":
        """The same rows in another dtype, one step of rounding farther from what they stand for."""
        if dtype == self.rows.dtype and (self.factors is None or dtype.itemsize >= 4):
            return self  # factors of short floats would be rounded once more
        rows, exact, computed = self.rows.to(dtype), self.rows, 0.0
        if self.factors is not None:
            exact = self.rows * self.factors[:, None]  # in float32, whatever the rows are
            rows, computed = exact.to(dtype), self.norm * 2.0**-23
        away = 0.0
        if dtype.itemsize < 4 and len(rows):
            away = float(torch.linalg.vector_norm(rows.float() - exact.float(), dim=1).max()) * (1 + 2.0**-10)
        rest = self.rest + away + computed + rows.shape[1] * TINY[dtype]
        return FastRows(rows, self.exponent, self.norm + away, rest)


def fast_rows(
    features: Float[Tensor, "m dim"], normalize: bool, dtype: torch.dtype, *, exponent: int | None = None
) -> FastRows:
    """The gallery side of the fast product, converted in pieces that fit the cache.

    Args:
        features: a part of the gallery as the user gave it; where it is not finite, neither is `rest`.
        normalize: whether the metric normalises.
        dtype: data type of the product.
        exponent: exponent of raw rows, `raw_exponent` of the whole gallery; None (default) takes that of this part.
    """
    if not normalize:
        return _raw_rows(features, dtype, raw_exponent(features, dtype) if exponent is None else exponent)
    rows = torch.empty(features.shape, dtype=dtype, device=features.device)
    size = max(1, ROWS_AT_ONCE // max(1, features.shape[1]))
    rests = [_unit_rows(part, out) for part, out in zip(features.split(size), rows.split(size), strict=True)]
    rest = math.nan if any(map(math.isnan, rests)) else max(rests, default=0.0)
    return FastRows(rows, 0, 1 + rest, rest)


def given_rows(features: Float[Tensor, "m dim"], normalize: bool, *, sums: torch.dtype = torch.float32) -> FastRows:
    """The gallery side of float32 products; features in float32 are not copied, where their norms allow it.

    Args:
        features: a part of the gallery as the user gave it; where it is not finite, neither is `rest`.
        normalize: whether the metric normalises.
        sums: data type in which norms are summed. In float64 they add nothing to what a product leaves open.
    """
    plain = plain_rows(features, normalize, sums=sums)
    return fast_rows(features, normalize, torch.float32) if plain is None else plain


def plain_rows(
    features: Float[Tensor, "m dim"], normalize: bool, *, sums: torch.dtype = torch.float32
) -> FastRows | None:
    """The same where rows need no more than a factor; None where they are in float64, or a norm is extreme."""
    if features.dtype.itemsize > 4:
        return None
    values = features.float()
    size = len(values) if sums == values.dtype else max(1, ROWS_AT_ONCE // max(1, features.shape[1]))
    # torch converts what it takes the norm of
    norms = torch.cat([torch.linalg.vector_norm(part, dim=1, dtype=sums) for part in values.split(max(1, size))])
    smallest, largest = (float(bound) for bound in torch.aminmax(norms)) if len(norms) else (1.0, 1.0)
    if not SAFE[0] < smallest <= largest < SAFE[1]:
        return None
    rest = 2.0**-22 if sums == torch.float64 else (features.shape[1] + 8) * 2.0**-24
    if normalize:
        return FastRows(values, 0, 1 + rest, rest, factors=norms.reciprocal_().float())
    return FastRows(values, 0, largest * (1 + rest), features.shape[1] * TINY[torch.float32])


def pair_rows(features: Float[Tensor, "m dim"], normalize: bool) -> FastRows:
    """The gallery side of float32 scores of single pairs, whose norms are summed in float64."""
    return given_rows(features, normalize, sums=torch.float64)


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


def raw_exponent(features: Float[Tensor, "m dim"], dtype: torch.dtype) -> int:
    """Exponent of the power of two that raw rows are divided by, to stay in the range of a dtype; mostly 0."""
    largest = max((float(part.abs().max()) for part in features.split(ROWS_AT_ONCE) if part.numel()), default=0.0)
    ordinary = 2.0**-30 < largest < 2.0**30 and dtype != torch.float16
    return math.frexp(largest)[1] if 0 < largest < math.inf and not ordinary else 0


def _raw_rows(features: Tensor, dtype: torch.dtype, exponent: int) -> FastRows:
    scale = 2.0 ** -max(-1000, min(1000, exponent))
    exact = features.double() * scale
    rows = exact.to(dtype)
    norm = float(torch.linalg.vector_norm(exact, dim=1).max()) if len(exact) else 0.0
    rest = float(torch.linalg.vector_norm(exact - rows, dim=1).max()) if len(exact) else 0.0
    slack = norm * 2.0**-48 + features.shape[1] * TINY[dtype]
    return FastRows(rows, exponent, (norm + rest) * (1 + 2.0**-40) + slack, rest * (1 + 2.0**-40) + slack)
