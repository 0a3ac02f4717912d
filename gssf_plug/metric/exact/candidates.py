r"""Which gallery items may still be among the k best of each query, while the gallery passes by in parts.

A fast score with its bound says that the canonical score lies in [low, high]. The k-th best `low` of a query so far is
a threshold: an item whose `high` stays below it cannot be among the k best, whatever rounding did. So most scores cost
one look in a short dtype; the pairs that it leaves open are looked at more closely, one by one, so that thresholds are
nearly the true k-th best scores; and what is then left, hardly more than is asked for, is decided afterwards.
Parts may come in any order, and from several threads.
"""

from collections.abc import Callable
from threading import Lock
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from gssf_plug.metric.exact.falling import largest
from gssf_plug.metric.exact.fast_scores import FastQueries
from gssf_plug.metric.exact.first_look import FirstLook, Found, Look, Part
from gssf_plug.metric.exact.reaching import places
from gssf_plug.metric.exact.threads import in_threads

__all__ = ["Candidates", "Pairs", "pad_pairs"]

MOST_UNDECIDED = 16  # candidates, times k
FEW_PAIRS = 1024  # cost less to keep than to drop


class Pairs(NamedTuple):
    """Pairs that may be among the best, those of a part in order of row: canonical scores lie in [`low`, `high`]."""

    rows: Int[Tensor, " pairs"]
    columns: Int[Tensor, " pairs"]
    low: Float[Tensor, " pairs"]
    high: Float[Tensor, " pairs"]

    def reaching(self, least: Float[Tensor, " n"]) -> "Pairs":
        """Those that may reach what is asked of their row."""
        return self._only(places(self.high >= least.index_select(0, self.rows)))

    def in_order(self) -> "Pairs":
        """By row, and by column within it."""
        width = int(self.columns.max()) + 1 if len(self.columns) else 0
        return self._only((self.rows * width + self.columns).argsort())

    def _only(self, kept: Int[Tensor, " kept"]) -> "Pairs":
        return Pairs(*(each.index_select(0, kept) for each in self))


class _Undecided(Exception):
    """Too much stays open to look at the rest."""


class Candidates:
    """The candidates of some queries.

    Args:
        close: their side of the product that decides most pairs.
        k: number of items that are asked for.
        first: first look at all pairs, before the closer one.
    """

    def __init__(self, close: FastQueries, k: int, first: FirstLook) -> None:
        self.close, self.k, self.first = close, k, first
        device = close.rows.device
        self.least = torch.full((len(close.rows),), float("-inf"), dtype=torch.float64, device=device)
        nobody, nothing = (torch.empty(0, dtype=dtype, device=device) for dtype in (torch.long, torch.float64))
        self.pairs = Pairs(nobody, nobody, nothing, nothing)
        self.guessed: Tensor | None = None
        self._best = nothing.new_empty(len(close.rows), 0)  # the k best `low` of each query so far, in any order
        self._parts: list[Pairs] = []
        self._seen = 0  # of the parts, in `_best`
        self._waiting = 0  # pairs of the others
        self._added = 0  # pairs of all of them
        self._alone = Lock()

    def __len__(self) -> int:
        return len(self.pairs.rows) + self._added

    def add(self, part: Part, start: int, hidden: Bool[Tensor, "n m"] | None, first: FirstLook | None = None) -> None:
        """A part of the gallery whose first item has the number `start`; `hidden` pairs are no candidates.

        Args:
            part: the part.
            start: the number of its first item.
            hidden: a mask of its pairs; None for none.
            first: the calling thread's own first look; None (default) where one thread adds all parts.
        """
        first = self.first if first is None else first
        if len(self) or self.guessed is not None:
            found = first.at_most(part, hidden, self.least)
        else:  # nothing to compare scores with yet
            found, least = first.begin(part, hidden, self.k)
            with self._alone:
                self.least = torch.maximum(self.least, least)
        pairs = self._closer(found, part, start)
        with self._alone:
            self._keep(pairs)

    def add_all(
        self, parts: list[slice], read: Callable[[slice], tuple[Part, Bool[Tensor, "n m"] | None]], threads: int
    ) -> bool:
        """All parts of a gallery; False, and not all of them, where too much stays open.

        Args:
            parts: the items of each.
            read: gives a part, and its hidden pairs.
            threads: how many look at parts of their own, at least 1.
        """

        def looking() -> Callable[[slice], None]:
            first = self.first if threads == 1 else self.first.apart()

            def look(part: slice) -> None:
                items, hidden = read(part)
                self.add(items, part.start, hidden, first)
                if self.too_many(part.stop - part.start):
                    raise _Undecided

            return look

        try:
            in_threads(looking, parts, threads, waits=True)
        except _Undecided:  # unless a part before it failed: what is raised does not depend on threads
            return False
        return True

    def guess(self, least: Float[Tensor, " n"]) -> None:
        """Start from scores that k items are expected to reach; `missed` says where in vain."""
        self.guessed = self.least = least

    def missed(self) -> Int[Tensor, " missed"]:
        """Queries whose guess was too high: what is kept for them is not enough."""
        if self.guessed is None:
            return self.pairs.rows[:0]
        if self._best.shape[1] < self.k:
            return (self.guessed > float("-inf")).nonzero()[:, 0]
        return (self._best.amin(1) < self.guessed).nonzero()[:, 0]

    def _closer(self, found: Found, part: Part, start: int) -> Pairs:
        """The pairs of a look that may be among the best; where they are few, after a closer look."""
        look, at = found
        rows = at.div(look.scores.shape[1], rounding_mode="floor")
        columns = at - rows * look.scores.shape[1]
        if isinstance(look, Look) and (look.fast is self.close or not look.leaves_little(at)):
            values = look.scores.flatten().index_select(0, at)
            low, high = look.fast.between(values, look.fast.margins(look.items).index_select(0, rows), look.items)
            return Pairs(rows, columns.add_(start), low, high)
        values = self.close.pairs(rows, part.rows, columns)
        margins = self.close.margins(part.rows, of_pairs=True)
        low, high = self.close.between(values, margins.index_select(0, rows), part.rows)
        return Pairs(rows, columns.add_(start), low, high).reaching(self.least)

    def _keep(self, pairs: Pairs) -> None:
        self._parts.append(pairs)
        self._waiting += len(pairs.rows)
        self._added += len(pairs.rows)
        if self._waiting * 4 > max(len(self.least) * self.k, FEW_PAIRS):
            self._raise()

    def _raise(self) -> None:
        """Raise the threshold to what is known by now."""
        new = self._parts[self._seen :]
        lows = [pad_pairs(len(self.least), rows, low)[0] for rows, _, low, _ in new]
        best = torch.cat([self._best, *lows], dim=1)
        if best.shape[1] > self.k:
            best = largest(best, self.k)
        if best.shape[1] == self.k:
            self.least = torch.maximum(self.least, best.amin(1))
        self._best, self._seen, self._waiting = best, len(self._parts), 0

    def prune(self) -> None:
        """Raise the threshold, drop what it excludes, and put the rest in order."""
        self._raise()
        every = Pairs(*(torch.cat(each) for each in zip(self.pairs, *self._parts, strict=True)))
        self.pairs, self._parts, self._seen, self._added = every.reaching(self.least).in_order(), [], 0, 0

    def too_many(self, besides: int = 0) -> bool:
        """Whether more stay than are worth a closer look one by one; `besides` so many of one part."""
        most = MOST_UNDECIDED * self.k * len(self.least) + besides
        with self._alone:
            if len(self) > most:
                self.prune()
            return len(self) > most

    def settle(self, scores: Float[Tensor, " pairs"]) -> None:
        """Take canonical scores for the present candidates; keep the k best of each query, ties by lower column."""
        padded, columns = pad_pairs(len(self.least), self.pairs.rows, scores, self.pairs.columns)
        padded, order = padded.sort(dim=1, descending=True, stable=True)
        self._best = padded[:, : self.k]
        chosen = self._best > float("-inf")
        values = self._best[chosen]
        self.pairs = Pairs(
            chosen.nonzero()[:, 0], columns.gather(1, order[:, : self.k])[chosen], values, values
        ).in_order()


def pad_pairs(count: int, rows: Int[Tensor, " pairs"], *values: Shaped[Tensor, " pairs"]) -> list[Tensor]:
    """Values of pairs in order of row as matrices of `count` rows; floats padded with -inf, whole numbers with -1."""
    counts = torch.bincount(rows, minlength=count)
    width = int(counts.max()) if count else 0
    # where a pair stands: its place in its row is its number less the number of pairs in rows before
    row_starts = torch.arange(0, count * width, width, device=rows.device) if width else counts
    shift = row_starts - (counts.cumsum(0) - counts)
    places = torch.arange(len(rows), device=rows.device).add_(shift.index_select(0, rows))
    padded = []
    for each in values:
        matrix = each.new_full((count * width,), float("-inf") if each.is_floating_point() else -1)
        padded.append(matrix.index_copy_(0, places, each).view(count, width))
    return padded
