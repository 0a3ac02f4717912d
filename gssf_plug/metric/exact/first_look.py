r"""Which product looks first at a part of the gallery: the shortest dtype that leaves little open.

A product in int8 takes half the time of one in bfloat16, and its bound is five times as wide. So it pays where the
thresholds of the queries stand high above most scores: late in a large gallery, unless features hardly differ. That
is found out by trying, on a few queries first; after it did not pay it is tried again more and more seldom.

A gallery that was rounded to int8 beforehand is looked at in int8 by any number of queries: a quarter of the reading.
"""

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from gssf_plug.metric.exact.canonical import CanonicalQueries
from gssf_plug.metric.exact.falling import largest
from gssf_plug.metric.exact.fast_rows import FastRows, fast_dtype
from gssf_plug.metric.exact.fast_scores import FastQueries, fast_queries
from gssf_plug.metric.exact.int8.whole_numbers import (
    HIDDEN,
    Shared,
    WholeQueries,
    WholeRows,
    fits_int8,
    multiplies_int8,
    shared,
    whole_queries,
    whole_rows,
)
from gssf_plug.metric.exact.reaching import GROUP, group_peaks, reaching, reaching_groups

__all__ = ["FirstLook", "Found", "Look", "Part", "WholeLook", "first_look", "short_dtypes"]

MANY_QUERIES = 64  # from here on a part is rounded sooner than multiplied in float32
TRIED = 64  # queries
MOST_OPEN = 0.02  # share of all pairs; to look at more of them closely costs more than a longer dtype for all
FEW_SCORES = 65_536  # cost less to compare than to group
LOOKED_AT = 8  # scores in a group whose largest bounds the k-th best of a first part from below


class Part:
    """A part of a gallery in the forms that looks ask for.

    Args:
        rows: gives the rows of the closer product, when they are first asked for.
        dtype: data type of that product.
        whole: the items as whole numbers, if they are there already.
    """

    def __init__(self, rows: Callable[[], FastRows], dtype: torch.dtype, whole: WholeRows | None = None) -> None:
        self._rows, self.dtype, self.whole = rows, dtype, whole

    @classmethod
    def of(cls, rows: FastRows) -> "Part":
        """One whose rows are there."""
        return cls(lambda: rows, rows.rows.dtype)

    @cached_property
    def rows(self) -> FastRows:
        """The rows in a float dtype."""
        return self._rows()


class _AllPairs:
    """Scores of all pairs, so near to the canonical ones that they tell which of these may reach a bound."""

    scores: Shaped[Tensor, "n m"]

    def reaching(self, least: Float[Tensor, " n"]) -> Int[Tensor, " places"]:
        """Where a canonical score may be at least its row's `least`, counted through all rows, ascending."""
        raise NotImplementedError

    def at_least(self, rank: int, *, surely: bool = True, scattered: bool = False) -> Float[Tensor, " n"]:
        """What so many canonical scores of each query are at least, -inf where there are fewer.

        Args:
            rank: how many.
            surely: whether how far a score may be from the canonical one is taken off.
            scattered: whether items that are alike do not stand together, so that large groups tell as much.
        """
        width = self.scores.shape[1]
        if rank > width:
            return torch.full((len(self.scores),), -torch.inf, dtype=torch.float64, device=self.scores.device)
        # where the rank is far below their number, the largest of some are nearly as good as all
        if scattered and rank * 4 <= width // GROUP:
            return self._values(self.peaks, rank, surely)
        few = rank * 4 <= width // LOOKED_AT
        return self._values(group_peaks(self.scores, LOOKED_AT) if few else self.scores, rank, surely)

    @cached_property
    def peaks(self) -> Shaped[Tensor, "n groups"]:
        """Those of whole groups of scores."""
        return group_peaks(self.scores)

    def _values(self, scores: Shaped[Tensor, "n some"], rank: int, surely: bool) -> Float[Tensor, " n"]:
        """The same of scores, each of which is the largest of so many in a row."""
        raise NotImplementedError

    def opposite(self) -> "_AllPairs":
        """The look of the opposite queries, -x, whose bounds are the same; in its memory, and nothing may be hidden."""
        raise NotImplementedError

    def leaves_little(self, places: Int[Tensor, " places"]) -> bool:
        """Whether so few of the pairs are open that they are worth a closer look one by one."""
        return len(places) <= MOST_OPEN * self.scores.numel()


@dataclass(frozen=True)
class Look(_AllPairs):
    """A look in floats.

    Args:
        fast: the queries.
        items: the part of the gallery.
        scores: their product, -inf where a pair is hidden.
        some_hidden: whether one is.
    """

    fast: FastQueries
    items: FastRows
    scores: Float[Tensor, "n m"]
    some_hidden: bool

    def reaching(self, least: Float[Tensor, " n"]) -> Int[Tensor, " places"]:
        """As above; a hidden pair reaches nothing."""
        peaks = self.peaks if self.scores.numel() > FEW_SCORES else None
        at = reaching(self.scores, self.fast.least(least, self.items), peaks)
        if self.some_hidden:  # which reach a bound that is not known yet
            at = at[self.scores.flatten().index_select(0, at) > float("-inf")]
        return at

    def opposite(self) -> "Look":
        """As above."""
        return replace(self, scores=self.scores.neg_())

    def _values(self, scores: Float[Tensor, "n some"], rank: int, surely: bool) -> Float[Tensor, " n"]:
        best = scores.topk(rank, dim=1, sorted=False).values.amin(1)
        margins = self.fast.margins(self.items) if surely else torch.zeros_like(self.fast.norms)
        return self.fast.between(best, margins, self.items).low


@dataclass(frozen=True)
class WholeLook(_AllPairs):
    """A look in whole numbers, which tells that alone: closer scores are due for what it leaves open.

    Args:
        whole: the queries.
        items: the part of the gallery.
        scores: their sums, in memory that the next look takes.
    """

    whole: WholeQueries
    items: WholeRows
    scores: Int[Tensor, "n padded"]

    def reaching(self, least: Float[Tensor, " n"]) -> Int[Tensor, " places"]:
        """As above; neither a hidden pair nor what stands behind the last item reaches anything."""
        return reaching_groups(self.scores, self.whole.least(least, self.items), self.peaks)

    def surely_reaching(self, least: Float[Tensor, " n"]) -> Int[Tensor, " places"]:
        """Where, but for rounding, it certainly is at least that."""
        return reaching_groups(self.scores, self.whole.surely(least, self.items), self.peaks)

    def opposite(self) -> "WholeLook":
        """As above."""
        whole = replace(self.whole, offsets=-self.whole.offsets)
        return replace(self, whole=whole, scores=self.scores.neg_())  # the lowest of all numbers stays: `HIDDEN`

    def _values(self, scores: Int[Tensor, "n some"], rank: int, surely: bool) -> Float[Tensor, " n"]:
        values = self.whole.scores(scores, self.items, surely=surely)
        return largest(values.masked_fill_(scores == HIDDEN, -torch.inf), rank).amin(1)


class Found(NamedTuple):
    """A look at a part of the gallery, and the places where canonical scores may reach what was asked."""

    look: Look | WholeLook
    places: Int[Tensor, " places"]


class FirstLook:
    """What looks first at the parts of a gallery.

    Args:
        queries: the canonical side of some queries.
        close: their side of the product that looks where no shorter dtype does.
        dtypes: the shorter dtypes: none, bfloat16, int8, or both.
        common: what is taken out of unit rows before they are rounded to whole numbers; None for nothing.
    """

    def __init__(
        self,
        queries: CanonicalQueries,
        close: FastQueries,
        dtypes: tuple[torch.dtype, ...] = (),
        common: Shared | None = None,
    ) -> None:
        self.few = len(close.rows) < MANY_QUERIES
        self.common = common
        # items that share much differ by what bfloat16 rounds
        short = torch.bfloat16 in dtypes and common is None
        self.usual = fast_queries(queries, torch.bfloat16) if short else close
        whole = torch.int8 in dtypes and fits_int8(queries.folded.shape[1])
        self.shortest = whole_queries(queries, common) if whole else None
        self._pays = False  # as far as is known
        self._waits, self._pause = 0, 1  # parts until it is tried again, and how many after that
        # of one part after the other: fresh memory costs as much again
        self._sums, self._room = torch.empty(0, dtype=torch.int32), torch.empty(0, dtype=torch.int8)

    def apart(self) -> "FirstLook":
        """The same for a thread of its own: with memory of its own."""
        other = copy(self)
        other._sums, other._room = self._sums.new_empty(0), self._room.new_empty(0)
        return other

    @property
    def looks_short(self) -> bool:
        """Whether many queries look in whole numbers, which would leave much of a gallery's beginning open."""
        return self.shortest is not None and not self.few

    def at(self, part: Part, hidden: Bool[Tensor, "n m"] | None) -> Look:
        """A look in the usual dtype."""
        items = part.rows.to(self.usual.rows.dtype)
        scores = self.usual.product(items)
        if hidden is not None:
            scores.masked_fill_(hidden, float("-inf"))
        return Look(self.usual, items, scores, hidden is not None)

    def roughly(self, part: Part, hidden: Bool[Tensor, "n m"] | None) -> WholeLook:
        """A look in whole numbers, however much it leaves open, where many queries look so."""
        assert self.shortest is not None
        return self._whole_look(self.shortest, self._whole_rows(part), hidden)

    def begin(self, part: Part, hidden: Bool[Tensor, "n m"] | None, rank: int) -> tuple[Found, Float[Tensor, " n"]]:
        """A look where nothing is known yet: what so many scores of each query are at least, and where that is reached.

        Returns:
            the look and the places, and the bounds of the queries.
        """
        if self.shortest is not None and part.whole is not None and self.few:
            whole = self._whole_look(self.shortest, part.whole, hidden)
            least = whole.at_least(rank)
            found = Found(whole, whole.reaching(least))
            if whole.leaves_little(found.places):
                return found, least
        look = self.at(part, hidden)
        least = look.at_least(rank)
        return Found(look, look.reaching(least)), least

    def at_most(self, part: Part, hidden: Bool[Tensor, "n m"] | None, least: Float[Tensor, " n"]) -> Found:
        """A look in the shortest dtype that leaves little open, and where it may reach `least`."""
        found = self._in_whole_numbers(part, hidden, least) if self.shortest is not None else None
        if found is not None:
            return found
        look = self.at(part, hidden)
        return Found(look, look.reaching(least))

    def _in_whole_numbers(
        self, part: Part, hidden: Bool[Tensor, "n m"] | None, least: Float[Tensor, " n"]
    ) -> Found | None:
        assert self.shortest is not None
        if self._waits:
            self._waits -= 1
            return None
        rows, some = self._whole_rows(part), slice(TRIED)
        if not self._pays and len(least) > TRIED:
            look = self._whole_look(self.shortest.part(some), rows, None if hidden is None else hidden[some])
            self._pays = look.leaves_little(look.reaching(least[some]))
        if self._pays or len(least) <= TRIED:
            look = self._whole_look(self.shortest, rows, hidden)
            found = Found(look, look.reaching(least))
            self._pays = look.leaves_little(found.places)
            if self._pays:
                return found
        self._waits, self._pause = self._pause, 2 * self._pause
        return None

    def _whole_rows(self, part: Part) -> WholeRows:
        if part.whole is not None:
            return part.whole
        count, dim = part.rows.rows.shape
        dim += 0 if self.common is None else self.common.channels
        if self._room.numel() < count * dim:
            self._room = torch.empty(count * dim, dtype=torch.int8)
        return whole_rows(part.rows, self._room[: count * dim].view(count, dim), self.common)

    def _whole_look(self, queries: WholeQueries, items: WholeRows, hidden: Bool[Tensor, "n m"] | None) -> WholeLook:
        shape = len(queries.rows), items.padded
        if self._sums.numel() < shape[0] * shape[1]:
            self._sums = torch.empty(len(self.usual.rows) * shape[1], dtype=torch.int32)
        sums = queries.sums(items, self._sums[: shape[0] * shape[1]].view(shape))
        if hidden is not None:
            sums[:, : len(items.rows)].masked_fill_(hidden, HIDDEN)
        return WholeLook(queries, items, sums)


def first_look(queries: CanonicalQueries, close: FastQueries, part: Part | None = None) -> FirstLook:
    """In the shorter dtypes that the device multiplies faster; by the close product where queries are few.

    Args:
        queries: their canonical side.
        close: their side of the close product.
        part: the first part of the gallery, which tells what its rows have in common. Whole numbers that were there
            before pay for any number of queries.
    """
    if close.rows.dtype != torch.float32:
        return FirstLook(queries, close)
    whole, dtypes = None if part is None else part.whole, short_dtypes(close.rows.device)
    if len(close.rows) < MANY_QUERIES:
        dtypes = () if whole is None else (torch.int8,)
    common = None if whole is None else whole.common
    if whole is None and part is not None and torch.int8 in dtypes and queries.squares is not None:
        common = shared(part.rows)
    return FirstLook(queries, close, dtypes, common)


def short_dtypes(device: torch.device) -> tuple[torch.dtype, ...]:
    """Dtypes whose products are faster than float32 on a device, from the longest to the shortest."""
    if device.type != "cpu":
        return ()
    floats = (fast_dtype(device),)
    return (*(floats if floats != (torch.float32,) else ()), *((torch.int8,) if multiplies_int8() else ()))
