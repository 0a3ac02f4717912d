r"""Which product looks first at a part of the gallery: the shortest dtype that leaves little open.

A product in int8 takes half the time of one in bfloat16, and its bound is five times as wide. So it pays where the
thresholds of the queries stand high above most scores: late in a large gallery, unless features hardly differ. That
is found out by trying, on a few queries first; after it did not pay it is tried again more and more seldom.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gssf_plug.metric.exact.canonical import CanonicalQueries
from gssf_plug.metric.exact.fast_rows import FastRows, short_dtypes
from gssf_plug.metric.exact.fast_scores import FastQueries, fast_queries
from gssf_plug.metric.exact.reaching import group_peaks, reaching

__all__ = ["FirstLook", "Look", "first_look"]

MANY_QUERIES = 64  # from here on a part is rounded sooner than multiplied in float32
TRIED = 64  # queries
MOST_OPEN = 0.02  # share of all pairs; to look at more of them closely costs more than a longer dtype for all
FEW_SCORES = 65_536  # cost less to compare than to group


@dataclass(frozen=True)
class Look:
    """Fast scores of all pairs, and the two sides of the product.

    Args:
        fast: the queries.
        items: the part of the gallery.
        scores: their product, -inf where a pair is hidden; of whole numbers raised, so that they only bound from above.
    """

    fast: FastQueries
    items: FastRows
    scores: Float[Tensor, "n m"]

    def reaching(self, least: Float[Tensor, " n"]) -> Int[Tensor, " places"]:
        """Where a canonical score may be at least its row's `least`, counted through all rows, ascending."""
        peaks = group_peaks(self.scores) if self.scores.numel() > FEW_SCORES else None
        return reaching(self.scores, self.fast.least(least, self.items), peaks)

    def leaves_little(self, places: Int[Tensor, " places"]) -> bool:
        """Whether so few of the pairs are open that they are worth a closer look one by one."""
        return len(places) <= MOST_OPEN * self.scores.numel()


class FirstLook:
    """What looks first at the parts of a gallery.

    Args:
        queries: the canonical side of some queries.
        close: their side of the product that looks where no shorter dtype does.
        dtypes: the shorter dtypes: none, bfloat16, int8, or both.
    """

    def __init__(self, queries: CanonicalQueries, close: FastQueries, dtypes: tuple[torch.dtype, ...] = ()) -> None:
        self.usual = fast_queries(queries, torch.bfloat16) if torch.bfloat16 in dtypes else close
        self.shortest = fast_queries(queries, torch.int8) if torch.int8 in dtypes else None
        self._pays = False  # as far as is known
        self._waits, self._pause = 0, 1  # parts until it is tried again, and how many after that

    def at(self, items: FastRows, hidden: Bool[Tensor, "n m"] | None) -> Look:
        """A look in the usual dtype."""
        return _look(self.usual, items.to(self.usual.rows.dtype), hidden)

    def at_most(
        self, items: FastRows, hidden: Bool[Tensor, "n m"] | None, least: Float[Tensor, " n"]
    ) -> tuple[Look, Int[Tensor, " places"]]:
        """A look in the shortest dtype that leaves little open, and where it may reach `least`."""
        found = self._in_whole_numbers(items, hidden, least) if self.shortest is not None else None
        if found is not None:
            return found
        look = self.at(items, hidden)
        return look, look.reaching(least)

    def _in_whole_numbers(
        self, items: FastRows, hidden: Tensor | None, least: Tensor
    ) -> tuple[Look, Int[Tensor, " places"]] | None:
        assert self.shortest is not None
        if self._waits:
            self._waits -= 1
            return None
        rows, some = items.to(torch.int8), slice(TRIED)
        if not self._pays:
            look = _look(self.shortest.part(some), rows, None if hidden is None else hidden[some])
            self._pays = look.leaves_little(look.reaching(least[some]))
        if self._pays:
            look = _look(self.shortest, rows, hidden)
            places = look.reaching(least)
            self._pays = look.leaves_little(places)
            if self._pays:
                return look, places
        self._waits, self._pause = self._pause, 2 * self._pause
        return None


def first_look(queries: CanonicalQueries, close: FastQueries) -> FirstLook:
    """In the shorter dtypes that the device multiplies faster, unless queries are few; else by the close product."""
    many = len(close.rows) >= MANY_QUERIES and close.rows.dtype == torch.float32
    return FirstLook(queries, close, short_dtypes(close.rows.device) if many else ())


def _look(fast: FastQueries, items: FastRows, hidden: Bool[Tensor, "n m"] | None) -> Look:
    scores, items = fast.raised(items)
    if hidden is not None:
        scores.masked_fill_(hidden, float("-inf"))
    return Look(fast, items, scores)
