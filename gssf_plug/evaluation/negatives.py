"""How many negatives score at least as high as each positive: by fast scores, and by closer ones where these must.

Fast scores of a chunk of queries are looked at and let go, by several threads at once where each can multiply alone.
What they leave open waits, so that closer scores, which read the gallery once more, are made for many pairs together.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from gssf_plug.evaluation.counting import certain_counts, certain_pairs, count_in_order
from gssf_plug.evaluation.positives import Matches, Positives
from gssf_plug.evaluation.scores import ScoredPart, ScoredQueries
from gssf_plug.metric.exact.fast_scores import Open
from gssf_plug.metric.exact.reaching import group_peaks, lowest_of
from gssf_plug.metric.exact.threads import in_threads, slices

__all__ = ["FINEST_AT_ONCE", "MANY_OPEN", "MOST_AFTER_SHORT", "MOST_PAIRS", "WAITING_AT_MOST", "NegativeCounts"]

FINEST_AT_ONCE = 2_097_152  # scores in float64: 16 MB
WAITING_AT_MOST = 1_048_576  # open pairs: some 40 MB
MOST_PAIRS = 3  # one in so many scores may wait for a closer product of its pair before a float64 product costs less
MOST_AFTER_SHORT = 32  # the same of scores in a short dtype, before a float32 product costs less
MOST_AFTER_DIGITS = 128  # and of sums of digits, which spare less
MANY_OPEN = 16  # the same where a table of canonical scores is to be had
MOST_OPEN = 64  # and so many may still be open then
SAMPLED_QUERIES, SAMPLED_ITEMS = 64, 512
TOGETHER = 8  # chunks of each thread between two looks at what waits


class _Tile(NamedTuple):
    """Pairs of some queries with a part of the gallery that fast scores leave open.

    `rows` are the queries and `scored` how many pairs they have; `can_be_closer` where products of single pairs tell
    more than fast scores do; `own` and `columns` are the query and the item (from the first of the part) of each.
    """

    rows: slice
    scored: int
    can_be_closer: bool
    own: Int[Tensor, " open"]
    columns: Int[Tensor, " open"]


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

    def add(self, rows: slice, at_once: int | None = None) -> None:
        """Count some of the queries, so many at once; None (default) takes all."""
        start, at_once = rows.start, at_once or rows.stop - rows.start
        self._ask_a_sample(rows)
        while start < rows.stop:
            threads = self.queries.side_by_side(self.columns)
            rounds = min(1 if threads == 1 else TOGETHER, -(-(rows.stop - start) // at_once))
            stop = min(rows.stop, start + rounds * at_once)
            equal = slices(stop - start, -(-(stop - start) // (rounds * threads)))  # no thread waits for another
            self._add_together([slice(start + one.start, start + one.stop) for one in equal], threads)
            start = stop

    def _ask_a_sample(self, rows: slice) -> None:
        """Look closer from the beginning where a few queries say that much would be open."""
        rows = slice(rows.start, min(rows.stop, rows.start + SAMPLED_QUERIES))
        step = max(1, (self.columns.stop - self.columns.start) // SAMPLED_ITEMS)
        part = self.queries.sampled(self.columns, rows, step)
        if part is None:
            return
        part.fast[self._matched(rows, step)] = lowest_of(part.fast.dtype)
        bounds = self._bounds(rows)
        _, at = _certain_counts(part.fast, part.around(*bounds), None)
        own = at.div(part.fast.shape[1], rounding_mode="floor")
        between = part.between(own, part.fast.take(at))
        assert between is not None
        _, still = certain_pairs(between, own, *bounds)
        if len(still) * MOST_AFTER_DIGITS > part.fast.numel():
            self.queries.look_closer()

    def _add_together(self, chunks: list[slice], threads: int) -> None:
        """Count chunks of queries on several threads, and one after the other those that leave too much open."""
        tiles: list[_Tile | None] = [None] * len(chunks)
        if not self.queries.wants_table:
            tiles = in_threads(self._scoring, chunks, threads, waits=True)
        short = None in tiles and not self.queries.wants_table and not self.queries.has_table
        closer = short and self.queries.look_closer()
        for rows, tile in zip(chunks, tiles, strict=True):
            if tile is not None:
                self._waiting.append(tile)
            elif closer:
                self._add_together([rows], 1)
            else:
                self._add_finest(rows)
        if sum(len(one.own) for one in self._waiting) > WAITING_AT_MOST:
            self._narrow_waiting()

    def finish(self) -> Int[Tensor, "n most"]:
        """The counts, every pair decided."""
        self._narrow_waiting()
        self._resolve()
        return self.counts

    def _scoring(self) -> Callable[[slice], _Tile | None]:
        too_open = False

        def score(rows: slice) -> _Tile | None:
            """The others would leave as much open, most likely: they are not looked at."""
            nonlocal too_open
            tile = None if too_open else self._certain(self.queries.part(self.columns, rows), rows)
            too_open = tile is None
            return tile

        return score

    def _certain(self, part: ScoredPart, rows: slice) -> _Tile | None:
        """Count what the fast scores of a part decide, and give what they leave open; None where that is too much."""
        fast, width = part.fast, part.fast.shape[1]
        fast[self._matched(rows)] = lowest_of(fast.dtype)
        bounds, limit = self._bounds(rows), None if self.positives.limit is None else self.positives.limit[rows]
        counts, at = _certain_counts(fast, part.around(*bounds), limit)
        if part.can_be_finer and len(at) * MOST_PAIRS > fast.numel():
            return None
        if len(at) * MANY_OPEN > fast.numel() and self.queries.has_table:
            return None
        own = at.div(width, rounding_mode="floor")
        columns, between = at - own * width, part.between(own, fast.take(at))
        if between is not None:
            sure, still = certain_pairs(between, own, *bounds)
            counts += sure
            own, columns = own.index_select(0, still), columns.index_select(0, still)
        most = MOST_AFTER_SHORT if fast.is_floating_point() else MOST_AFTER_DIGITS
        most = most if part.can_be_closer else MOST_OPEN
        if part.can_be_finer and len(own) * most > fast.numel():
            return None
        self.counts[rows] += counts
        return _Tile(rows, fast.numel(), part.can_be_closer, own + rows.start, columns)

    def _bounds(self, rows: slice) -> tuple[Float[Tensor, "n most"], Float[Tensor, "n most"]]:
        """Between what the canonical scores of the positives of some queries lie."""
        scores, slack = self.positives.scores[rows], self.queries.slack[rows, None]
        return scores - slack, scores + slack

    def _matched(self, rows: slice, step: int = 1) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"]]:
        """Row and column of every matched pair of the queries `rows` with the part, or with every so many-th of it."""
        of_rows = self.matches.between(rows)
        row, column = self.matches.rows[of_rows] - rows.start, self.matches.columns[of_rows] - self.columns.start
        inside = (column >= 0) & (column < self.columns.stop - self.columns.start) & (column % step == 0)
        return row[inside], column[inside] // step

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
        if any(tile.can_be_closer for tile in tiles):
            rows = slice(tiles[0].rows.start, tiles[-1].rows.stop)
            between = self.queries.pairs(self.columns, own, columns)
            sure, still = certain_pairs(between, own - rows.start, *self._bounds(rows))
            if len(still) * MOST_OPEN > sum(tile.scored for tile in tiles):
                return False
            self.counts[rows] += sure
            own, columns = own.index_select(0, still), columns.index_select(0, still)
        self._open.append((own, columns + self.columns.start))
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
    fast: Shaped[Tensor, "n m"], bounds: Open, limit: Int[Tensor, " n"] | None
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
    high: Float[Tensor, "n most"], peaks: Shaped[Tensor, "n groups"], limit: Int[Tensor, " n"]
) -> Bool[Tensor, "n most"] | None:
    """Which positives certainly have a rank beyond the limit; None where the groups are too few to tell."""
    largest = int(limit.max())
    if largest > peaks.shape[1]:
        return None
    # so many items score at least as high as the limit-th peak, each in a group of its own
    # chosen sooner than from short floats, and whole numbers as they are
    wide = peaks.to(torch.promote_types(peaks.dtype, torch.float32) if peaks.is_floating_point() else torch.float64)
    reached = wide.topk(largest).values.gather(1, limit[:, None] - 1)
    return high < reached
