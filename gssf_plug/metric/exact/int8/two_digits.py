r"""Rows as two digits of int8: products nearly as close as float32's, of which three in int8 take less time than one.

    x = σ (h + l/254) + r,    y = τ (h' + l'/254) + r':
    |x·y − στ/254 (254 h·h' + h·l' + l·h')|  ≤  ‖σl/254‖ ‖τl'/254‖ + ‖r‖ ‖y‖ + (‖x‖ + ‖r‖) ‖r'‖

with h, l, h' and l' up to 127, and all norms measured. Queries have steps σ of their own, a part of a gallery has one
τ: sums of a query are compared with each other as they are, in 32 bits.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Int8
from torch import Tensor

from gssf_plug.metric.exact.canonical import CanonicalQueries
from gssf_plug.metric.exact.fast_rows import TINY, FastRows
from gssf_plug.metric.exact.fast_scores import Open, exact_pieces
from gssf_plug.metric.exact.int8.whole_numbers import LEAST_STEP, MEASURED, MOST
from gssf_plug.metric.exact.threads import in_threads, slices

__all__ = ["DigitPart", "DigitQueries", "DigitRows", "digit_queries", "digit_rows"]

DIGIT = 2 * MOST  # of the lower digit to one of the higher
ENTRIES_AT_ONCE = 524_288  # 2 MB in float32: read once, what is made of them stays in the cache
ITEMS_AT_ONCE = 2048  # whose sums with some queries stay there, too
MOST_OF_SUMS = 2**31 - 1


@dataclass(frozen=True)
class DigitRows:
    """A part of a gallery as two digits.

    Args:
        both: l' and h' of each item beside each other.
        step: τ.
        norm: no row is longer.
        low: no row has a longer τl'/254.
        rest: nor a longer r'.
    """

    both: Int8[Tensor, "m wide"]
    step: float
    norm: float
    low: float
    rest: float

    @property
    def high(self) -> Int8[Tensor, "m dim"]:
        """h' of each item."""
        return self.both[:, self.both.shape[1] // 2 :]

    def part(self, columns: slice) -> "DigitRows":
        """Some of the rows, on the same terms."""
        return replace(self, both=self.both[columns])


class _Digits(NamedTuple):
    """How long, in steps of the lower digit, that digit of each row is, and what both leave."""

    low: Float[Tensor, " n"]
    rest: Float[Tensor, " n"]


@dataclass(frozen=True)
class DigitQueries:
    """Folded queries as two digits.

    Args:
        both: h and l of each query beside each other.
        steps: σ of each.
        norms: ‖x‖ + ‖r‖ of each.
        lows: ‖σl/254‖ of each.
        rests: ‖r‖ of each.
    """

    both: Int8[Tensor, "n wide"]
    steps: Float[Tensor, " n"]
    norms: Float[Tensor, " n"]
    lows: Float[Tensor, " n"]
    rests: Float[Tensor, " n"]

    @property
    def high(self) -> Int8[Tensor, "n dim"]:
        """h of each query."""
        return self.both[:, : self.both.shape[1] // 2]

    def part(self, rows: slice) -> "DigitQueries":
        """Some of the queries."""
        return DigitQueries(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    def fits(self, items: DigitRows) -> bool:
        """Whether the sums with all items stay within 32 bits."""
        high, low = (self.norms + self.lows) / self.steps, DIGIT * self.lows / self.steps
        high_there, low_there = (items.norm + items.rest + items.low) / items.step, DIGIT * items.low / items.step
        largest = DIGIT * high * high_there + high * low_there + low * high_there
        return not len(largest) or float(largest.max()) * MEASURED < MOST_OF_SUMS

    def sums(self, items: DigitRows) -> Int[Tensor, "n m"]:
        """254 h·h' + h·l' + l·h' of all pairs."""
        count = len(self.both)
        sums = torch.empty(count, len(items.both), dtype=torch.int32)
        rooms = torch.empty(2, count * min(ITEMS_AT_ONCE, len(items.both)), dtype=torch.int32)
        for columns in slices(len(items.both), ITEMS_AT_ONCE):
            some, width = items.part(columns), columns.stop - columns.start
            high, cross = (room[: count * width].view(count, width) for room in rooms)
            torch._int_mm(self.high, some.high.T, out=high)
            torch._int_mm(self.both, some.both.T, out=cross)
            torch.add(cross, high, alpha=DIGIT, out=sums[:, columns])
        return sums


class DigitPart:
    """Fast scores of some queries with a part of a gallery: sums of digits."""

    can_be_finer = can_be_closer = True

    def __init__(self, queries: DigitQueries, items: DigitRows) -> None:
        margins = queries.lows * items.low + queries.rests * items.norm + queries.norms * items.rest
        self._margins, self._units = margins * (1 + 2.0**-20), queries.steps * (items.step / DIGIT)
        self.fast = queries.sums(items)

    def around(self, low: Float[Tensor, "n k"], high: Float[Tensor, "n k"]) -> Open:
        """Sums below `low` of the result are of scores below `low`, those above its `high` of ones above `high`."""
        margins, units = self._margins[:, None], self._units[:, None]
        return Open(((low - margins) / units).floor_() - 1, ((high + margins) / units).ceil_() + 1)

    def between(self, rows: Int[Tensor, " pairs"], fast: Int[Tensor, " pairs"]) -> Open:
        """Between what the canonical scores of pairs with these sums lie."""
        scores, margins = fast * self._units.index_select(0, rows), self._margins.index_select(0, rows)
        return Open(scores - margins, scores + margins)

    def around_items(self, low: Float[Tensor, " m"], high: Float[Tensor, " m"]) -> Open:
        """The same as `around` for one value per item, whichever query is compared with it."""
        widest, units = self._margins.max(), torch.stack(self._units.aminmax())[:, None]
        return Open(
            ((low - widest) / units).amin(0).floor_() - 1,
            ((high + widest) / units).amax(0).ceil_() + 1,
        )


def digit_queries(queries: CanonicalQueries) -> DigitQueries | None:
    """The query side, from the canonical one; None where its scores are out of the ordinary range."""
    exponent, pieces = exact_pieces(queries)
    if exponent:
        return None
    count, dim = queries.folded.shape
    both, parts, begin = torch.empty(count, 2 * dim, dtype=torch.int8), [], 0
    for exact in pieces:
        own = slice(begin, begin := begin + len(exact))
        norms, steps = torch.linalg.vector_norm(exact, dim=1), _steps(exact.abs().amax(1))
        room = torch.empty(2, *exact.shape, dtype=torch.float32)
        found = _write(exact.float(), steps.reciprocal().float(), both[own, :dim], both[own, dim:], room)
        lows, rests = _measured(found, steps, norms, dim)
        parts.append((steps, norms + rests, lows, rests))
    return DigitQueries(both, *(torch.cat(part) for part in zip(*parts, strict=True)))


def digit_rows(items: FastRows) -> DigitRows:
    """The gallery side, from unit rows, or rows with factors that make them so."""
    count, dim = items.rows.shape
    both = torch.empty(count, 2 * dim, dtype=torch.int8)
    blocks = slices(count, ENTRIES_AT_ONCE // max(1, dim))
    threads = torch.get_num_threads()

    def largest(own: slice) -> Tensor:
        rows = items.rows[own]
        most = torch.maximum(rows.amax(1), -rows.amin(1)).float()
        return (most if items.factors is None else most * items.factors[own]).amax()

    peaks = in_threads(lambda: largest, blocks, threads, waits=True)
    step = _steps(torch.stack([torch.zeros(()), *peaks]).amax().double())

    def worker() -> Callable[[slice], _Digits]:
        room = torch.empty(2, blocks[0].stop, dim, dtype=torch.float32)  # written again and again

        def write(own: slice) -> _Digits:
            rows = items.rows[own].float()
            factors = torch.ones(len(rows), dtype=torch.float32) if items.factors is None else items.factors[own]
            return _write(rows, factors / step.float(), both[own, dim:], both[own, :dim], room[:, : len(rows)])

        return write

    nothing = _Digits(*torch.zeros(2, 1))
    found = [nothing, *(in_threads(worker, blocks, threads, waits=True) if blocks else [])]
    measured = _Digits(*(torch.cat(part) for part in zip(*found, strict=True)))
    lows, rests = _measured(measured, step, torch.tensor(items.norm, dtype=torch.float64), dim)
    return DigitRows(both, float(step), items.norm, float(lows.max()), float(rests.max()) + items.rest)


def _steps(largest: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    return largest.clamp_min(LEAST_STEP * MOST) / MOST


def _write(
    values: Float[Tensor, "n dim"],
    factors: Float[Tensor, " n"],
    high: Int8[Tensor, "n dim"],
    low: Int8[Tensor, "n dim"],
    room: Float[Tensor, "2 n dim"],
) -> _Digits:
    """Write values times the factor of their row, below 127.5, as two digits."""
    left = torch.mul(values, factors[:, None], out=room[0])
    high.copy_(torch.round(left, out=room[1]))
    left.sub_(room[1]).mul_(DIGIT)
    low.copy_(torch.round(left, out=room[1]))
    length = torch.linalg.vector_norm(room[1], dim=1)
    return _Digits(length, torch.linalg.vector_norm(left.sub_(room[1]), dim=1))


def _measured(
    found: _Digits, steps: Float[Tensor, "*n"], norms: Float[Tensor, "*n"], dim: int
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """How long the lower digit is, and what is left: with what was rounded in float32 before it was a digit."""
    units = steps * (MEASURED / DIGIT)
    lows, rests = found.low.double() * units, found.rest.double() * units
    return lows, rests + (norms + lows) * 2.0**-21 + dim * TINY[torch.float32]
