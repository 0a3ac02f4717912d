r"""Rows as whole numbers up to 127, in steps: their products take half the time of bfloat16, and have no rounding.

    x = σ m + r,    y = τ n + t:        |x·y − στ (m·n)|  ≤  ‖r‖ ‖y‖ + ‖σm‖ ‖t‖

with m and n in int8, and ‖r‖ and ‖t‖ measured. Items in a row of `GROUP` share τ and the largest ‖t‖. So what a query
must reach is one whole number for each group: sums are compared as they are, and most of them by the largest of their
group alone.
"""

import functools
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int, Int8
from torch import Tensor

from gssf_plug.metric.exact.canonical import CanonicalQueries
from gssf_plug.metric.exact.fast_rows import TINY, FastRows
from gssf_plug.metric.exact.fast_scores import exact_pieces
from gssf_plug.metric.exact.reaching import GROUP

__all__ = ["HIDDEN", "WholeQueries", "WholeRows", "fits_int8", "multiplies_int8", "whole_queries", "whole_rows"]

MOST = 127  # the largest of int8 on both sides of zero
MOST_CHANNELS = (2**31 - 1) // MOST**2  # whose products add up in 32 bits
LEAST_CHANNELS = 2  # torch 2.13 does not write the product of one
LEAST_STEP = 1e-30  # rows of less come out as zeros, which is measured, too
ENTRIES_AT_ONCE = 524_288  # 2 MB in float32: read once, what is made of them stays in the cache
HIDDEN = -(2**31)  # a sum that reaches nothing
MEASURED = 1 + 2.0**-10  # a norm in float32, rounded up


@functools.cache
def multiplies_int8() -> bool:
    """Whether the CPU multiplies int8 by instructions that were tried: exactly, and twice as fast as bfloat16."""
    has_instructions = getattr(torch.cpu, "_is_vnni_supported", lambda: False)
    has_tiles = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)  # whose bfloat16 is as fast; never tried
    if not has_instructions() or has_tiles() or not hasattr(torch, "_int_mm"):
        return False
    # told to leave them alone (ONEDNN_MAX_CPU_ISA), oneDNN adds pairs of products in 16 bits, which largest ones exceed
    largest = torch.full((64, 64), MOST, dtype=torch.int8)
    return bool((torch._int_mm(largest, largest.T) == 64 * MOST**2).all())


def fits_int8(channels: int) -> bool:
    """Whether rows of so many channels are multiplied as whole numbers."""
    return LEAST_CHANNELS <= channels <= MOST_CHANNELS


@dataclass(frozen=True)
class WholeRows:
    """A part of a gallery as whole numbers.

    Args:
        rows: n of each item.
        exponent: exponent of the one power of two that keeps raw rows in range; 0 for unit rows.
        norm: no item, times 2^-exponent, is longer.
        steps: τ of each group.
        rests: the largest ‖t‖ of each group.
    """

    rows: Int8[Tensor, "m dim"]
    exponent: int
    norm: float
    steps: Float[Tensor, " groups"]
    rests: Float[Tensor, " groups"]

    @property
    def padded(self) -> int:
        """Number of items in whole groups."""
        return len(self.steps) * GROUP

    def part(self, columns: slice) -> "WholeRows":
        """Some of the items, from the first of a group on."""
        groups = slice(columns.start // GROUP, -(-columns.stop // GROUP))
        return replace(self, rows=self.rows[columns], steps=self.steps[groups], rests=self.rests[groups])


@dataclass(frozen=True)
class WholeQueries:
    """Folded queries as whole numbers.

    Args:
        rows: m of each query.
        exponent: exponent of one power of two for all of them, mostly 0.
        steps: σ of each.
        norms: ‖σm‖ of each.
        rests: ‖r‖ of each.
    """

    rows: Int8[Tensor, "n dim"]
    exponent: int
    steps: Float[Tensor, " n"]
    norms: Float[Tensor, " n"]
    rests: Float[Tensor, " n"]

    def part(self, rows: slice) -> "WholeQueries":
        """Some of the queries."""
        return WholeQueries(self.rows[rows], self.exponent, self.steps[rows], self.norms[rows], self.rests[rows])

    def sums(self, items: WholeRows, out: Int[Tensor, "n padded"]) -> Int[Tensor, "n padded"]:
        """m·n of all pairs, written into `out`; what stands behind the last item reaches nothing."""
        count = len(items.rows)
        if count == items.padded:
            return torch._int_mm(self.rows, items.rows.T, out=out)
        out[:, :count] = torch._int_mm(self.rows, items.rows.T)
        out[:, count:] = HIDDEN
        return out

    def least(self, values: Float[Tensor, " n"], items: WholeRows) -> Int[Tensor, "n groups"]:
        """What the sums of a query with the items of each group reach where a canonical score may be `values`."""
        return self._sums_at(values, items, -1)

    def surely(self, values: Float[Tensor, " n"], items: WholeRows) -> Int[Tensor, "n groups"]:
        """What they reach, but for rounding, where it certainly is."""
        return self._sums_at(values, items, 1)

    def scores(self, sums: Int[Tensor, "n some"], items: WholeRows, *, surely: bool) -> Float[Tensor, "n some"]:
        """Scores of sums, equally many of every group; `surely`: what the canonical ones are at least."""
        every = sums.shape[1] // len(items.steps)
        values = (sums * self.steps[:, None]).mul_(items.steps.repeat_interleave(every))
        if surely:
            values.addcmul_(self.norms[:, None], items.rests.repeat_interleave(every), value=-1)
            values -= (self.rests * items.norm)[:, None]
        return values.mul_(2.0 ** max(-1000, min(1000, self.exponent + items.exponent)))

    def _sums_at(self, values: Float[Tensor, " n"], items: WholeRows, sign: int) -> Int[Tensor, "n groups"]:
        values = values * 2.0 ** -max(-1000, min(1000, self.exponent + items.exponent))
        # (v ∓ (‖r‖‖y‖ + ‖σm‖‖t‖)) / στ for all queries and groups
        of_queries = torch.stack([values + sign * self.rests * items.norm, sign * self.norms], 1) / self.steps[:, None]
        of_groups = torch.stack([torch.ones_like(items.rests), items.rests]) / items.steps
        return (of_queries @ of_groups).floor_().clamp_(HIDDEN + 1, -HIDDEN - 1).int()


def whole_queries(queries: CanonicalQueries) -> WholeQueries:
    """The query side, from the canonical one."""
    exponent, pieces = exact_pieces(queries)
    parts = []
    for exact in pieces:
        steps = exact.abs().amax(1).clamp_min_(LEAST_STEP * MOST).div_(MOST)
        numbers = torch.empty(exact.shape, dtype=torch.int8)
        rests = _rounded(exact, steps.reciprocal(), numbers, torch.empty(2, *exact.shape, dtype=exact.dtype))
        norms = torch.linalg.vector_norm(exact, dim=1)
        rests = rests * steps * MEASURED + norms * 2.0**-48 + exact.shape[1] * TINY[torch.float32]
        parts.append((numbers, steps, norms + rests, rests))
    rows, steps, norms, rests = (torch.cat(part) for part in zip(*parts, strict=True))
    return WholeQueries(rows, exponent, steps, norms, rests)


def whole_rows(items: FastRows, out: Int8[Tensor, "m dim"] | None = None) -> WholeRows:
    """The gallery side, from rows in float32; the whole numbers are written into `out`, if that is given."""
    count, dim = items.rows.shape
    rows = torch.empty(count, dim, dtype=torch.int8) if out is None else out
    steps, rests = torch.empty(2, count, dtype=torch.float32)
    size = max(1, ENTRIES_AT_ONCE // max(1, dim * GROUP)) * GROUP
    # written again and again, so that it stays in the cache
    scratch = torch.empty(2, min(size, count), dim, dtype=torch.float32)
    for start in range(0, count, size):
        piece, own = items.rows[start : start + size].float(), slice(start, min(start + size, count))
        factors = 1.0 if items.factors is None else items.factors[own]
        largest = _of_groups(torch.maximum(piece.amax(1), -piece.amin(1)) * factors)
        steps[own] = largest.clamp_min_(LEAST_STEP * MOST).div_(MOST).repeat_interleave(GROUP)[: len(piece)]
        rests[own] = _rounded(piece, factors / steps[own], rows[own], scratch[:, : len(piece)])
    steps, rests = steps[::GROUP].double(), _of_groups(rests).double()
    # the factors, and what was taken off, are rounded
    computed = items.rest + items.norm * 2.0**-21 + dim * TINY[torch.float32]
    rests = rests * steps * MEASURED + computed
    return WholeRows(rows, items.exponent, items.norm + items.rest, steps, rests)


def _rounded(
    values: Float[Tensor, "n dim"],
    factors: Float[Tensor, " n"],
    numbers: Int8[Tensor, "n dim"],
    scratch: Float[Tensor, "2 n dim"],
) -> Float[Tensor, " n"]:
    """Write values times the factor of their row, below 127.5, as whole numbers; the norm of what that takes off."""
    scaled = torch.mul(values, factors[:, None], out=scratch[0])
    numbers.copy_(torch.round(scaled, out=scratch[1]))
    return torch.linalg.vector_norm(scaled.sub_(scratch[1]), dim=1)


def _of_groups(values: Float[Tensor, " n"]) -> Float[Tensor, " groups"]:
    """The largest of each group; none is below zero."""
    return torch.nn.functional.pad(values, (0, -len(values) % GROUP)).view(-1, GROUP).amax(1)
