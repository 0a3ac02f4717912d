"""How many negatives score at least as high as each positive: by fast scores, and by closer ones where these must.

Fast scores of a chunk of queries are looked at and let go. What they leave open waits, so that closer scores, which
read the gallery once more, are made for many pairs together.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gssf_plug.evaluation.counting import certain_counts, certain_pairs, count_in_order
from gssf_plug.evaluation.positives import Matches, Positives
from gssf_plug.evaluation.scores import ScoredPart, ScoredQueries, slices
from gssf_plug.metric.exact.fast_scores import Open
from gssf_plug.metric.exact.reaching import group_peaks

__all__ = ["FINEST_AT_ONCE", "MANY_OPEN", "MOST_AFTER_SHORT", "MOST_PAIRS", "WAITING_AT_MOST", "NegativeCounts"]

FINEST_AT_ONCE = 2_097_152  # scores in float64: 16 MB
WAITING_AT_MOST = 1_048_576  # open pairs: some 40 MB
MOST_PAIRS = 3  # one in so many scores may wait for a closer product of its pair before a float64 product costs less
MOST_AFTER_SHORT = 32  # the same of scores in a short dtype, before a float32 product costs less
MANY_OPEN = 16  # the same where a table of canonical scores is to be had
MOST_OPEN = 64  # and so many may still be open then


class _Tile(NamedTuple):
    """Pairs of some queries with a part of the gallery that fast scores leave open.

    `rows` are the queries and `scored` how many pairs they have; `can_be_finer` where a closer product is to be had;
    `own` and `columns` are the query and the item (from the first of the part) of each open pair; `between` is what
    their canonical scores lie between, None where products of single pairs are to tell.
    """

    rows: slice
    scored: int
    can_be_finer: bool
    own: Int[Tensor, " open"]
    columns: Int[Tensor, " open"]
    between: Open | None


class NegativeCounts:
    """Counts for each of a row's ascending positives the items of a part of the gallery that score at least as high.

    Args:
        queries: some queries.
        columns: the part of the gallery.
        positives: positives of these queries.
        matches: pairs that are no negatives.
    """

    def __init__(self, queries: ScoredQueries, columns: slice, positives: Positives, matches: Matches) -> None:
        self.queries, self.columns, self.positives, self.matches = queries, columns, positives, matches
        self.counts = torch.zeros_like(positives.columns)
        self._waiting: list[_Tile] = []
        self._open: list[tuple[Tensor, Tensor]] = []

    def add(self, rows: slice) -> None:
        """Count some of the queries."""
        wants_table = self.queries.wants_table
        tile = None if wants_table else self._certain(self.queries.part(self.columns, rows), rows)
        if tile is None and not self.queries.has_table and self.queries.look_closer():
            tile = self._certain(self.queries.part(self.columns, rows), rows)
        if tile is None:
            self._add_finest(rows)
            return
        self._waiting.append(tile)
        if tile.between is not None or sum(len(one.own) for one in self._waiting) > WAITING_AT_MOST:
            self._narrow_waiting()

    def finish(self) -> Int[Tensor, "n most"]:
        """The counts, every pair decided."""
        self._narrow_waiting()
        self._resolve()
        return self.counts

    def _certain(self, part: ScoredPart, rows: slice) -> _Tile | None:
        """Count what the fast scores of a part decide, and give what they leave open; None where that is too much."""
        fast, width = part.fast, part.fast.shape[1]
        fast[self._matched(rows)] = float("-inf")
        scores, slack = self.positives.scores[rows], self.queries.slack[rows, None]
        limit = None if self.positives.limit is None else self.positives.limit[rows]
        counts, at = _certain_counts(fast, part.around(scores - slack, scores + slack), limit)
        most = MOST_AFTER_SHORT if fast.dtype.itemsize == 2 else MOST_PAIRS
        if part.can_be_finer and len(at) * most > fast.numel():
            return None
        if len(at) * MANY_OPEN > fast.numel() and self.queries.has_table:
            return None
        self.counts[rows] += counts
        own = at.div(width, rounding_mode="floor")
        between = part.between(own, fast.take(at))
        return _Tile(rows, fast.numel(), part.can_be_finer, own + rows.start, at - own * width, between)

    def _matched(self, rows: slice) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"]]:
        """Row and column of every matched pair of the queries `rows` with the part."""
        of_rows = self.matches.between(rows)
        row, column = self.matches.rows[of_rows] - rows.start, self.matches.columns[of_rows] - self.columns.start
        inside = (column >= 0) & (column < self.columns.stop - self.columns.start)
        return row[inside], column[inside]

    def _narrow_waiting(self) -> None:
        """Narrow the pairs that wait; where too many stay open, their queries are counted anew."""
        tiles, self._waiting = self._waiting, []
        if tiles and not self._narrow(tiles):
            for tile in tiles:
                self.counts[tile.rows] = 0
                self._add_finest(tile.rows)

    def _narrow(self, tiles: list[_Tile]) -> bool:
        """Count what closer scores decide of open pairs; False, and nothing counted, where a finer product is due."""
        own, columns = (torch.cat(parts) for parts in zip(*(tile[3:5] for tile in tiles), strict=True))
        rows, between = slice(tiles[0].rows.start, tiles[-1].rows.stop), tiles[0].between
        if between is None:
            between = self.queries.pairs(self.columns, own, columns)
        scores, slack = self.positives.scores[rows], self.queries.slack[rows, None]
        sure, still = certain_pairs(between, own - rows.start, scores - slack, scores + slack)
        if tiles[0].can_be_finer and len(still) * MOST_OPEN > sum(tile.scored for tile in tiles):
            return False
        self.counts[rows] += sure
        self._open.append((own.index_select(0, still), columns.index_select(0, still).add_(self.columns.start)))
        if sum(len(rows) for rows, _ in self._open) > WAITING_AT_MOST:
            self._resolve()
        return True

    def _add_finest(self, rows: slice) -> None:
        """Count some queries by float64 products, which take twice the memory and so come in pieces."""
        for piece in slices(rows.stop - rows.start, FINEST_AT_ONCE // max(1, self.columns.stop - self.columns.start)):
            some = slice(rows.start + piece.start, rows.start + piece.stop)
            if self.queries.has_table:
                self._add_table(some)
                continue
            tile = self._certain(self.queries.part(self.columns, some, finest=True), some)
            assert tile is not None
            self._narrow([tile])

    def _add_table(self, rows: slice) -> None:
        """Count some queries by canonical scores of all pairs."""
        table = self.queries.table(self.columns, rows)
        if len(self.queries.parts) == 1:
            self.positives.take(rows, table)
        else:
            self.positives.settle(self.queries, torch.arange(rows.start, rows.stop, device=table.device))
        table[self._matched(rows)] = float("-inf")
        self.counts[rows] += count_in_order(self.positives.scores[rows], table)

    def _resolve(self) -> None:
        """Add each open pair to the counts of the positives that it equals or beats, by float64 products and ties."""
        if not self._open:
            return
        rows, columns = (torch.cat(parts) for parts in zip(*self._open, strict=True))
        self._open = []
        close, slack = self.queries.close(rows, columns), 2 * self.queries.slack[rows]
        positives = self.positives.scores
        sure, near = certain_pairs(Open(close - slack, close + slack), rows, positives, positives)
        self.counts += sure
        if not len(near):
            return
        rows, columns = rows.index_select(0, near), columns.index_select(0, near)
        self.positives.settle(self.queries, rows.unique())
        exact, positives = self.queries.canonical(rows, columns), self.positives.scores
        # the bound above is left out: equal scores reach
        self.counts += certain_pairs(Open(torch.full_like(exact, torch.inf), exact), rows, positives, positives)[0]


def _certain_counts(
    fast: Float[Tensor, "n m"], bounds: Open, limit: Int[Tensor, " n"] | None
) -> tuple[Int[Tensor, "n most"], Int[Tensor, " open"]]:
    """How many scores of a row are certainly above each positive's bounds, and the places of those that are open."""
    peaks, beyond = None, None
    if limit is not None:
        peaks = group_peaks(fast)
        beyond = _beyond(bounds.high, peaks, limit)
    if beyond is None:
        return certain_counts(fast, *bounds)
    low, high = (bound.masked_fill(beyond, torch.inf) for bound in bounds)
    counts, at = certain_counts(fast, low, high, peaks)
    return counts.masked_fill_(beyond, fast.shape[1]), at


def _beyond(
    high: Float[Tensor, "n most"], peaks: Float[Tensor, "n groups"], limit: Int[Tensor, " n"]
) -> Bool[Tensor, "n most"] | None:
    """Which positives certainly have a rank beyond the limit; None where the groups are too few to tell."""
    largest = int(limit.max())
    if largest > peaks.shape[1]:
        return None
    # so many items score at least as high as the limit-th peak, each in a group of its own
    wide = peaks.to(torch.promote_types(peaks.dtype, torch.float32))  # chosen sooner than from short floats
    reached = wide.topk(largest).values.gather(1, limit[:, None] - 1)
    return high < reached
