r"""Rows as whole numbers up to 127, in steps: their products take half the time of bfloat16, and have no rounding.

    x = σ m + r,    y = τ n + t:        |x·y − στ (m·n)|  ≤  ‖r‖ ‖y‖ + ‖σm‖ ‖t‖

with m and n in int8, and ‖r‖ and ‖t‖ measured. Items in a row of `GROUP` share τ and the largest ‖t‖. So what a query
must reach is one whole number for each group: sums are compared as they are, and most of them by the largest of their
group alone.

Features of an encoder often share a direction: then rows are long where they differ by little, and so is what rounding
takes off. `Shared` takes it out, exactly: for any vector m, with u = m·y, α = m·x / m·m, and a number a near most u,

    x·y  =  α a  +  [x − α m, α/E … α/E] · [y − u m, u − a … u − a]

The last E channels of both sides hold what is left of m, spread so that no entry stands out.
"""

import functools
import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int, Int8
from torch import Tensor

from gssf_plug.metric.exact.canonical import CanonicalQueries
from gssf_plug.metric.exact.fast_rows import TINY, FastRows
from gssf_plug.metric.exact.fast_scores import exact_pieces
from gssf_plug.metric.exact.reaching import GROUP

__all__ = [
    "HIDDEN",
    "Shared",
    "WholeQueries",
    "WholeRows",
    "fits_int8",
    "multiplies_int8",
    "shared",
    "whole_queries",
    "whole_rows",
]

MOST = 127  # the largest of int8 on both sides of zero
MOST_CHANNELS = (2**31 - 1) // MOST**2  # whose products add up in 32 bits
LEAST_CHANNELS = 2  # torch 2.13 does not write the product of one
LEAST_STEP = 1e-30  # rows of less come out as zeros, which is measured, too
ENTRIES_AT_ONCE = 524_288  # 2 MB in float32: read once, what is made of them stays in the cache
HIDDEN = -(2**31)  # a sum that reaches nothing
FEWEST_ROWS = 64  # tell a direction that they share
ROWS_LOOKED_AT = 4096
LEAST_SHARED = 0.2  # of the square of unit rows: below, more channels cost what they spare
CHANNELS_OF_SHARED = 16  # a multiple, and at most half as many as there are channels
MEASURED = 1 + 2.0**-10  # a norm in float32, rounded up


def multiplies_int8() -> bool:
    """Whether the CPU multiplies int8 by instructions that were tried: exactly, and twice as fast as bfloat16."""
    # without oneDNN, which the user may switch off at any time, the product is twenty times slower than float32's
    return bool(torch.backends.mkldnn.enabled) and _has_instructions()


@functools.cache
def _has_instructions() -> bool:
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
class Shared:
    """What unit rows have in common, which is taken out of both sides before these are rounded.

    Args:
        direction: m, in float32, of length about 1.
        along: a.
        channels: E.
    """

    direction: Float[Tensor, " dim"]
    along: float
    channels: int

    def of_queries(self, exact: Float[Tensor, "n dim"]) -> tuple[Float[Tensor, "n wide"], Float[Tensor, " n"]]:
        """The query side in float64, and α a."""
        direction = self.direction.double()
        alpha = exact @ direction / (direction @ direction)
        left = torch.addcmul(exact, alpha[:, None], direction, value=-1)
        spread = (alpha / self.channels)[:, None].expand(-1, self.channels)
        return torch.cat([left, spread], dim=1), alpha * self.along

    def of_items(
        self, values: Float[Tensor, "n dim"], factors: Float[Tensor, " n"], out: Float[Tensor, "2 n wide"]
    ) -> tuple[Float[Tensor, "n wide"], Float[Tensor, " n"]]:
        """The gallery side of rows before they are multiplied by their factors, and u − a after it."""
        dim = len(self.direction)
        # not a matrix product, whose factors a switch of the user may round
        along = torch.mul(values, self.direction, out=out[1, :, :dim]).sum(1)
        torch.addcmul(values, along[:, None], self.direction, value=-1, out=out[0, :, :dim])
        left = along - self.along / factors
        out[0, :, dim:] = left[:, None]
        return out[0], left * factors

    def norms(self, left: Float[Tensor, " n"], longest: float) -> Float[Tensor, " n"]:
        """No item on the gallery side is longer, if its row is not longer than `longest`."""
        dim, left = len(self.direction), left.double()
        off = 4 * (dim + 8) * 2.0**-24 * longest  # of u, twice what it can be
        # ‖y − u m‖² = ‖y‖² − u² (2 − m·m)
        taken = (left + self.along).square() * (2 - float(self.direction.double().square().sum()))
        squares = longest**2 - taken + self.channels * left.square()
        return (squares.clamp_min_(0.0) + off * (1 + self.channels * left.abs())).sqrt_().mul_(MEASURED)

    def rest(self, items: FastRows) -> float:
        """How far an item on the gallery side may be from where it belongs, by rounding before it is one to int8."""
        sums = (len(self.direction) + 8) * 2.0**-24 + 2.0**-21
        return math.sqrt(self.channels) * (items.rest + items.norm * sums)


def shared(items: FastRows) -> Shared | None:
    """What the rows of a part of a gallery have in common, if that is much.

    Args:
        items: unit rows, or rows with factors that make them so.
    """
    step = max(1, len(items.rows) // ROWS_LOOKED_AT)
    rows = items.rows[::step].float()
    if len(rows) < FEWEST_ROWS:
        return None
    rows = rows if items.factors is None else rows * items.factors[::step, None]
    mean = rows.mean(0)
    length = torch.linalg.vector_norm(mean)
    if not float(length) ** 2 > LEAST_SHARED:
        return None
    direction = mean / length
    entry = float(
        torch.addcmul(rows, (rows * direction).sum(1, keepdim=True), direction, value=-1).abs().amax(1).mean()
    )
    steps = math.ceil(float(length) / (CHANNELS_OF_SHARED * max(entry, 1e-6)))
    channels = CHANNELS_OF_SHARED * max(1, min(steps, len(direction) // (2 * CHANNELS_OF_SHARED)))
    return Shared(direction, float(length), channels) if fits_int8(len(direction) + channels) else None


@dataclass(frozen=True)
class WholeRows:
    """A part of a gallery as whole numbers.

    Args:
        rows: n of each item.
        exponent: exponent of the one power of two that keeps raw rows in range; 0 for unit rows.
        norms: no item of a group, times 2^-exponent, is longer.
        steps: τ of each group.
        rests: the largest ‖t‖ of each group.
        common: what was taken out of the rows before; None for nothing.
    """

    rows: Int8[Tensor, "m dim"]
    exponent: int
    norms: Float[Tensor, " groups"]
    steps: Float[Tensor, " groups"]
    rests: Float[Tensor, " groups"]
    common: Shared | None = None

    @property
    def padded(self) -> int:
        """Number of items in whole groups."""
        return len(self.steps) * GROUP

    def part(self, columns: slice) -> "WholeRows":
        """Some of the items, from the first of a group on."""
        groups = slice(columns.start // GROUP, -(-columns.stop // GROUP))
        of_groups = {name: getattr(self, name)[groups] for name in ("norms", "steps", "rests")}
        return replace(self, rows=self.rows[columns], **of_groups)


@dataclass(frozen=True)
class WholeQueries:
    """Folded queries as whole numbers.

    Args:
        rows: m of each query.
        exponent: exponent of one power of two for all of them, mostly 0.
        steps: σ of each.
        norms: ‖σm‖ of each.
        rests: ‖r‖ of each.
        offsets: what is added to all products of each: α a of `Shared`, or 0.
    """

    rows: Int8[Tensor, "n dim"]
    exponent: int
    steps: Float[Tensor, " n"]
    norms: Float[Tensor, " n"]
    rests: Float[Tensor, " n"]
    offsets: Float[Tensor, " n"]

    def part(self, rows: slice) -> "WholeQueries":
        """Some of the queries."""
        of_rows = {name: getattr(self, name)[rows] for name in ("rows", "steps", "norms", "rests", "offsets")}
        return replace(self, **of_rows)

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
        values += self.offsets[:, None]
        if surely:
            values.addcmul_(self.norms[:, None], items.rests.repeat_interleave(every), value=-1)
            values.addcmul_(self.rests[:, None], items.norms.repeat_interleave(every), value=-1)
        return values.mul_(2.0 ** max(-1000, min(1000, self.exponent + items.exponent)))

    def _sums_at(self, values: Float[Tensor, " n"], items: WholeRows, sign: int) -> Int[Tensor, "n groups"]:
        values = values * 2.0 ** -max(-1000, min(1000, self.exponent + items.exponent)) - self.offsets
        # (v − αa ± (‖r‖‖y‖ + ‖σm‖‖t‖)) / στ for all queries and groups
        of_queries = torch.stack([values, sign * self.rests, sign * self.norms], dim=1) / self.steps[:, None]
        of_groups = torch.stack([torch.ones_like(items.rests), items.norms, items.rests]) / items.steps
        return (of_queries @ of_groups).floor_().clamp_(HIDDEN + 1, -HIDDEN - 1).int()


def whole_queries(queries: CanonicalQueries, common: Shared | None = None) -> WholeQueries:
    """The query side, from the canonical one, without what the items have in common."""
    exponent, pieces = exact_pieces(queries)
    parts = []
    for exact in pieces:
        lengths = torch.linalg.vector_norm(exact, dim=1)
        wide, offsets = (exact, torch.zeros_like(lengths)) if common is None else common.of_queries(exact)
        steps = wide.abs().amax(1).clamp_min_(LEAST_STEP * MOST).div_(MOST)
        numbers = torch.empty(wide.shape, dtype=torch.int8)
        rests = _rounded(wide, steps.reciprocal(), numbers, torch.empty(2, *wide.shape, dtype=wide.dtype))
        norms = lengths if common is None else torch.linalg.vector_norm(wide, dim=1)
        # sums in float64, however short the rows are that are left
        rests = rests * steps * MEASURED + lengths * wide.shape[1] * 2.0**-42 + wide.shape[1] * TINY[torch.float32]
        parts.append((numbers, steps, norms + rests, rests, offsets))
    rows, steps, norms, rests, offsets = (torch.cat(part) for part in zip(*parts, strict=True))
    return WholeQueries(rows, exponent, steps, norms, rests, offsets)


def whole_rows(items: FastRows, out: Int8[Tensor, "m wide"] | None = None, common: Shared | None = None) -> WholeRows:
    """The gallery side, from rows in float32.

    Args:
        items: the rows.
        out: where the whole numbers are written, if it is given.
        common: what is taken out of unit rows.
    """
    count, dim = items.rows.shape
    wide = dim if common is None else dim + common.channels
    rows = torch.empty(count, wide, dtype=torch.int8) if out is None else out
    steps, rests, left = torch.empty(3, count, dtype=torch.float32)
    size = max(1, ENTRIES_AT_ONCE // max(1, dim * GROUP)) * GROUP
    # written again and again, so that it stays in the cache
    scratch = torch.empty(2, min(size, count), wide, dtype=torch.float32)
    for start in range(0, count, size):
        piece, own = items.rows[start : start + size].float(), slice(start, min(start + size, count))
        room = scratch[:, : len(piece)]
        factors = torch.ones(len(piece), dtype=torch.float32) if items.factors is None else items.factors[own]
        if common is not None:
            piece, left[own] = common.of_items(piece, factors, room)
        largest = _of_groups(torch.maximum(piece.amax(1), -piece.amin(1)) * factors)
        steps[own] = largest.clamp_min_(LEAST_STEP * MOST).div_(MOST).repeat_interleave(GROUP)[: len(piece)]
        rests[own] = _rounded(piece, factors / steps[own], rows[own], room)
    steps, rests = steps[::GROUP].double(), _of_groups(rests).double()
    longest = items.norm + items.rest
    norms = torch.full_like(steps, longest) if common is None else _of_groups(common.norms(left, longest))
    # the factors, and what was taken off, are rounded
    computed = items.rest + items.norm * 2.0**-21 if common is None else common.rest(items)
    rests = rests * steps * MEASURED + computed + wide * TINY[torch.float32]
    return WholeRows(rows, items.exponent, norms + computed, steps, rests, common)


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
