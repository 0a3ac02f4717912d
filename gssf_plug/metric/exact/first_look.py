r"""Which product looks first at a part of the gallery: the shortest dtype that leaves little open.

A product in int8 takes half the time of one in bfloat16, and its bound is five times as wide. So it pays where the
thresholds of the queries stand high above most scores: late in a large gallery, unless features hardly differ. That
is found out by trying, on a few queries first; after it did not pay it is tried again more and more seldom.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from gssf_plug.metric.exact.canonical import CanonicalQueries
from gssf_plug.metric.exact.fast_rows import FastRows, fast_dtype
from gssf_plug.metric.exact.fast_scores import FastQueries, fast_queries
from gssf_plug.metric.exact.reaching import group_peaks, reaching, reaching_groups
from gssf_plug.metric.exact.whole_numbers import (
    HIDDEN,
    MOST_CHANNELS,
    WholeQueries,
    WholeRows,
    multiplies_int8,
    whole_queries,
    whole_rows,
)

__all__ = ["FirstLook", "Look", "WholeLook", "first_look", "short_dtypes"]

MANY_QUERIES = 64  # from here on a part is rounded sooner than multiplied in float32
TRIED = 64  # queries
MOST_OPEN = 0.02  # share of all pairs; to look at more of them closely costs more than a longer dtype for all
FEW_SCORES = 65_536  # cost less to compare than to group


class _AllPairs:
    """Scores of all pairs, so near to the canonical ones that they tell which of these may reach a bound."""

    scores: Shaped[Tensor, "n m"]

    def reaching(self, least: Float[Tensor, " n"]) -> Int[Tensor, " places"]:
        """Where a canonical score may be at least its row's `least`, counted through all rows, ascending."""
        raise NotImplementedError

    def negate(self) -> None:
        """Make it the look of the opposite queries, -x, whose bounds are the same; nothing may be hidden."""
        self.scores.neg_()

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
        peaks = group_peaks(self.scores) if self.scores.numel() > FEW_SCORES else None
        at = reaching(self.scores, self.fast.least(least, self.items), peaks)
        if self.some_hidden:  # which reach a bound that is not known yet
            at = at[self.scores.flatten().index_select(0, at) > float("-inf")]
        return at


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
        at = reaching_groups(self.scores, self.whole.least(least, self.items))
        width = self.scores.shape[1]
        return at if width == self.items.count else at[at.remainder(width) < self.items.count]


class FirstLook:
    """What looks first at the parts of a gallery.

    Args:
        queries: the canonical side of some queries.
        close: their side of the product that looks where no shorter dtype does.
        dtypes: the shorter dtypes: none, bfloat16, int8, or both.
    """

    def __init__(self, queries: CanonicalQueries, close: FastQueries, dtypes: tuple[torch.dtype, ...] = ()) -> None:
        self.usual = fast_queries(queries, torch.bfloat16) if torch.bfloat16 in dtypes else close
        whole = torch.int8 in dtypes and queries.folded.shape[1] <= MOST_CHANNELS
        self.shortest = whole_queries(queries) if whole else None
        self._pays = False  # as far as is known
        self._waits, self._pause = 0, 1  # parts until it is tried again, and how many after that
        self._sums = torch.empty(0, dtype=torch.int32)  # of one part after the other: fresh memory costs as much again

    def at(self, items: FastRows, hidden: Bool[Tensor, "n m"] | None) -> Look:
        """A look in the usual dtype."""
        items = items.to(self.usual.rows.dtype)
        scores = self.usual.product(items)
        if hidden is not None:
            scores.masked_fill_(hidden, float("-inf"))
        return Look(self.usual, items, scores, hidden is not None)

    def at_most(
        self, items: FastRows, hidden: Bool[Tensor, "n m"] | None, least: Float[Tensor, " n"]
    ) -> tuple[Look | WholeLook, Int[Tensor, " places"]]:
        """A look in the shortest dtype that leaves little open, and where it may reach `least`."""
        found = self._in_whole_numbers(items, hidden, least) if self.shortest is not None else None
        if found is not None:
            return found
        look = self.at(items, hidden)
        return look, look.reaching(least)

    def _in_whole_numbers(
        self, items: FastRows, hidden: Bool[Tensor, "n m"] | None, least: Float[Tensor, " n"]
    ) -> tuple[WholeLook, Int[Tensor, " places"]] | None:
        assert self.shortest is not None
        if self._waits:
            self._waits -= 1
            return None
        rows, some = whole_rows(items), slice(TRIED)
        if not self._pays:
            look = self._whole_look(self.shortest.part(some), rows, None if hidden is None else hidden[some])
            self._pays = look.leaves_little(look.reaching(least[some]))
        if self._pays:
            look = self._whole_look(self.shortest, rows, hidden)
            places = look.reaching(least)
            self._pays = look.leaves_little(places)
            if self._pays:
                return look, places
        self._waits, self._pause = self._pause, 2 * self._pause
        return None

    def _whole_look(self, queries: WholeQueries, items: WholeRows, hidden: Bool[Tensor, "n m"] | None) -> WholeLook:
        shape = len(queries.rows), len(items.rows)
        if self._sums.numel() < shape[0] * shape[1]:
            self._sums = torch.empty(len(self.usual.rows) * shape[1], dtype=torch.int32)
        sums = queries.sums(items, self._sums[: shape[0] * shape[1]].view(shape))
        if hidden is not None:
            sums[:, : items.count].masked_fill_(hidden, HIDDEN)
        return WholeLook(queries, items, sums)


def first_look(queries: CanonicalQueries, close: FastQueries) -> FirstLook:
    """In the shorter dtypes that the device multiplies faster, unless queries are few; else by the close product."""
    many = len(close.rows) >= MANY_QUERIES and close.rows.dtype == torch.float32
    return FirstLook(queries, close, short_dtypes(close.rows.device) if many else ())


def short_dtypes(device: torch.device) -> tuple[torch.dtype, ...]:
    """Dtypes whose products are faster than float32 on a device, from the longest to the shortest."""
    if device.type != "cpu":
        return ()
    floats = (fast_dtype(device),)
    return (*(floats if floats != (torch.float32,) else ()), *((torch.int8,) if multiplies_int8() else ()))
