r"""Both ends of every ranking of a set by itself, of one product: what re-ranking scales its distances by.

The set is read once, for all chunks of queries. A chunk's scores with all items are looked at together: the largest of
every group of items say what the k-th best scores at least, and so which pairs may be among the k best. These are
looked at more closely, and what is then left is decided in float64, for many chunks at once. The lowest scores are the
highest of the opposite query, with the same bounds.
"""

import functools
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gssf_plug.metric.exact.candidates import pad_pairs
from gssf_plug.metric.exact.canonical import CanonicalQueries, canonical_queries, folds_nothing
from gssf_plug.metric.exact.choosing import RowsOfScores, choose_best
from gssf_plug.metric.exact.decisions import best_of_candidates
from gssf_plug.metric.exact.falling import largest
from gssf_plug.metric.exact.fast_rows import FastRows, given_rows
from gssf_plug.metric.exact.fast_scores import FastQueries, Open, fast_queries
from gssf_plug.metric.exact.first_look import Look, WholeLook, short_dtypes
from gssf_plug.metric.exact.int8.whole_numbers import (
    HIDDEN,
    Shared,
    WholeRows,
    fits_int8,
    shared,
    whole_queries,
    whole_rows,
)
from gssf_plug.metric.exact.pair_products import pair_products
from gssf_plug.metric.exact.reaching import places
from gssf_plug.metric.exact.sums import correct_roots, power_of_two, scale_rows
from gssf_plug.metric.gallery import check_finite
from gssf_plug.metric.metric import GSSFMetric
from gssf_plug.metric.search import MANY, topk

__all__ = ["Ends", "nearest_and_farthest"]

ITEMS_AT_ONCE = 32_768
SUMS_AT_ONCE = 16_777_216  # in whole numbers: 64 MB, which are kept
BYTES_AT_ONCE = 33_554_432  # in floats, made anew; a process gives larger ones back each time, which costs as much
QUERIES_AT_ONCE = 2048  # of which so many scores are held
DECIDED_AT_ONCE = 4096  # queries, whose open pairs are scored together
MOST_CLOSE, MOST_UNDECIDED = 64, 16  # pairs of a query that are worth a closer look, and then float64, times k
FEW_PAIRS = 1024, 256  # the same for a small k


class Ends(NamedTuple):
    """`nearest` are the k best items of each, best first, and `farthest` is the worst: numbers of rows."""

    nearest: Int[Tensor, "n k"]
    farthest: Int[Tensor, " n"]


@torch.no_grad()
def nearest_and_farthest(metric: GSSFMetric, features: Float[Tensor, "n dim"], k: int) -> Ends:
    """`topk(metric, features, features, k)` and the item that is worst for each, exactly, ties by lower index.

    Args:
        metric: the similarity.
        features: N×D, all of which are searched for each of them.
        k: how many, 1 … N.

    Raises:
        ArgumentError: what `topk` refuses.
    """
    check_finite("features", features, 0)
    nothing = torch.full((len(features), k + 1), -1, device=features.device)
    ends = Ends(nothing[:, :k].contiguous(), nothing[:, k].contiguous())
    if k * MANY <= len(features):
        _Search(metric, features, k).fill(ends)
    left = ((ends.nearest[:, -1] < 0) | (ends.farthest < 0)).nonzero()[:, 0]
    if len(left):
        ends.nearest[left] = topk(metric, features[left], features, k).indices
        # the fold is linear: the best of -x is the worst of x
        ends.farthest[left] = topk(metric, -features[left], features, 1).indices[:, 0]
    return ends


class _Pairs(NamedTuple):
    """Numbers of queries and of items."""

    rows: Int[Tensor, " pairs"]
    columns: Int[Tensor, " pairs"]

    @classmethod
    def at(cls, places: Int[Tensor, " pairs"], width: int) -> "_Pairs":
        """Of places counted through rows of so many."""
        rows = places.div(width, rounding_mode="floor")
        return cls(rows, places - rows * width)

    def kept(self, at: Int[Tensor, " places"]) -> "_Pairs":
        return _Pairs(self.rows.index_select(0, at), self.columns.index_select(0, at))

    def shifted(self, rows: int, columns: int) -> "_Pairs":
        return _Pairs(self.rows + rows, self.columns + columns)


class _End:
    """One end of the rankings of some queries.

    Args:
        close: the queries.
        k: how many items are wanted.
        sign: 1 for the highest scores, -1 for the lowest.
    """

    def __init__(self, close: FastQueries, k: int, sign: int) -> None:
        self.close, self.k, self.sign = close, k, sign
        self.least = torch.full((len(close.rows),), -math.inf, dtype=torch.float64, device=close.rows.device)
        self.parts: list[_Pairs] = []

    def see(self, look: Look | WholeLook, items: FastRows, start: int) -> bool:
        """Take the pairs that a look at a part leaves open; False, and nothing is taken, where these are too many."""
        self.least = torch.maximum(self.least, look.at_least(self.k, scattered=True))
        if isinstance(look, WholeLook):  # the best of these few say by closer scores what the k-th best is at least
            best = _Pairs.at(look.surely_reaching(self.least), look.scores.shape[1])
            self.least = torch.maximum(self.least, self._kth(best, self.between(best, items).low))
        at = look.reaching(self.least)
        most = MOST_UNDECIDED * self.k * len(self.least)
        taken = look.leaves_little(at) if isinstance(look, WholeLook) else len(at) <= most
        if taken:
            self.parts.append(_Pairs.at(at, look.scores.shape[1]).shifted(0, start))
        return taken

    def pairs(self) -> _Pairs:
        """What was taken, queries in order."""
        pairs = _joined(self.parts)
        return pairs if len(self.parts) == 1 else pairs.kept(pairs.rows.argsort(stable=True))

    def best(self, pairs: _Pairs, items: FastRows) -> _Pairs:
        """Those that closer scores leave among the k best; none of a query that has too many."""
        pairs = _uncrowded(pairs, max(MOST_CLOSE * self.k, FEW_PAIRS[0]))
        low, high = self.between(pairs, items)
        pairs = pairs.kept(places(high >= self._kth(pairs, low).index_select(0, pairs.rows)))
        return _uncrowded(pairs, max(MOST_UNDECIDED * self.k, FEW_PAIRS[1]))

    def between(self, pairs: _Pairs, items: FastRows) -> Open:
        """Between what the scores of pairs lie, by float32 products of these alone; of the opposite for the lowest."""
        values = self.close.pairs(pairs.rows, items, pairs.columns).mul_(self.sign)
        margins = self.close.margins(items, of_pairs=True).index_select(0, pairs.rows)
        return self.close.between(values, margins, items)

    def _kth(self, pairs: _Pairs, low: Float[Tensor, " pairs"]) -> Float[Tensor, " n"]:
        (lows,) = pad_pairs(len(self.least), pairs.rows, low)
        return largest(lows, self.k).amin(1) if lows.shape[1] >= self.k else torch.full_like(self.least, -math.inf)


class _Search:
    """A set that is searched by itself.

    Args:
        metric: the similarity.
        features: N×D.
        k: how many of the nearest are wanted.
    """

    def __init__(self, metric: GSSFMetric, features: Float[Tensor, "n dim"], k: int) -> None:
        self.features, self.k = features, k
        self.queries = canonical_queries(metric, features)
        self.close = fast_queries(self.queries, torch.float32)
        self.items, self.order = _by_step(given_rows(features, metric.normalize))
        self.precise = _Precise(metric, features, self.queries)
        self.starts = range(0, len(features), ITEMS_AT_ONCE)
        self.parts = [self.items.part(slice(start, start + ITEMS_AT_ONCE)) for start in self.starts]
        self.shorter = short_dtypes(features.device)
        self.tells = torch.int8 in self.shorter and fits_int8(features.shape[1])  # enough in whole numbers
        if self.tells:
            common = shared(self.items) if metric.normalize else None
            self.whole = whole_queries(self.queries, common)
            self.whole_parts = [_padded(part, common) for part in self.parts]
            self.sums = torch.empty(0, dtype=torch.int32)  # of one look after the other: fresh memory costs as much

    def fill(self, ends: Ends) -> None:
        """Write both ends of the queries of which fast products decide enough."""
        size = len(self.features)
        if not bool(self.queries.folded.sum().isfinite()):
            return
        scores = SUMS_AT_ONCE if self.tells else BYTES_AT_ONCE // self.usual.rows.dtype.itemsize
        at_once = max(1, min(QUERIES_AT_ONCE, scores // min(size, ITEMS_AT_ONCE)))
        together = -(-size // -(-size // DECIDED_AT_ONCE))  # blocks of about one size
        for first in range(0, size, together):
            rows = slice(first, min(first + together, size))
            starts = range(first, rows.stop, at_once)
            chunks = [self._open_pairs(slice(start, min(start + at_once, rows.stop)), first) for start in starts]
            found = [pairs for pairs in chunks if pairs is not None]
            if found:
                near, far = (
                    end.best(_joined(pairs), self.items)
                    for end, pairs in zip(self._ends(rows), zip(*found, strict=True), strict=True)
                )
                self._write_nearest(rows, near, ends.nearest[rows])
                self._write_farthest(rows, far, ends.farthest[rows])

    def _ends(self, rows: slice) -> tuple[_End, _End]:
        close = self.close.part(rows)
        return _End(close, self.k, 1), _End(close, 1, -1)

    def _open_pairs(self, rows: slice, first: int) -> tuple[_Pairs, _Pairs] | None:
        """Pairs of some queries that may be at either end, queries counted from `first`; None where too many may."""
        near, far = self._ends(rows)
        for number, start in enumerate(self.starts):
            waiting = {near, far}
            for look in self._looks(rows, number):
                if near in waiting and near.see(look, self.parts[number], start):
                    waiting.remove(near)
                if far in waiting and far.see(look.opposite(), self.parts[number], start):
                    waiting.remove(far)
                if not waiting:
                    break
                self.tells = False
            if waiting:
                return None
        return near.pairs().shifted(rows.start - first, 0), far.pairs().shifted(rows.start - first, 0)

    def _looks(self, rows: slice, number: int) -> Iterator[Look | WholeLook]:
        """Looks at the pairs of some queries with a part, the shortest first."""
        if self.tells:
            items, count = self.whole_parts[number], rows.stop - rows.start
            if self.sums.numel() < count * len(items.rows):
                self.sums = torch.empty(count * len(items.rows), dtype=torch.int32)
            sums = self.whole.part(rows).sums(items, self.sums[: count * len(items.rows)].view(count, -1))
            sums[:, len(self.parts[number].rows) :] = HIDDEN
            yield WholeLook(self.whole.part(rows), items, sums)
        queries, part = self.usual.part(rows), self.usual_parts[number]
        yield Look(queries, part, queries.product(part), False)

    @functools.cached_property
    def usual(self) -> FastQueries:
        """The queries in the dtype that looks where whole numbers tell too little."""
        return fast_queries(self.queries, torch.bfloat16) if torch.bfloat16 in self.shorter else self.close

    @functools.cached_property
    def usual_parts(self) -> list[FastRows]:
        """And the set."""
        return [part.to(self.usual.rows.dtype) for part in self.parts]

    def _write_nearest(self, rows: slice, pairs: _Pairs, nearest: Int[Tensor, "n k"]) -> None:
        """In float64, and canonically where that leaves it open."""
        queries, own = self.queries.part(rows), pairs._replace(columns=self.order.index_select(0, pairs.columns))
        scores, slack = self.precise.scores(queries, own)
        columns, scores = pad_pairs(len(nearest), own.rows, own.columns, scores)
        columns, order = columns.masked_fill_(columns < 0, len(self.features)).sort(dim=1)
        best = torch.empty(nearest.shape, dtype=torch.float32, device=nearest.device)
        choose_best(RowsOfScores(queries, self.features, scores.gather(1, order), columns, slack), (best, nearest))
        nearest[~best.isfinite().all(1)] = -1

    def _write_farthest(self, rows: slice, pairs: _Pairs, farthest: Int[Tensor, " n"]) -> None:
        """Nearly always one is left; else as the best of the opposite query."""
        own = pairs._replace(columns=self.order.index_select(0, pairs.columns))
        farthest[own.rows] = own.columns
        counts = torch.bincount(own.rows, minlength=len(farthest))
        several = places(counts > 1)
        if not len(several):
            return
        own = own.kept(places(counts.index_select(0, own.rows) > 1))
        own = own.kept((own.rows * len(self.features) + own.columns).argsort())
        found = farthest.new_empty(len(several), 1)
        scores = torch.empty(found.shape, dtype=torch.float32, device=found.device)
        queries = self.queries.part(several + rows.start).opposite()
        best_of_candidates(queries, self.features, torch.searchsorted(several, own.rows), own.columns, (scores, found))
        farthest[several] = found[:, 0].masked_fill(~scores[:, 0].isfinite(), -1)


class _Precise:
    """The items in float64.

    Args:
        metric: the similarity.
        features: N×D, as they were given.
        queries: the same as queries.
    """

    def __init__(self, metric: GSSFMetric, features: Float[Tensor, "n dim"], queries: CanonicalQueries) -> None:
        if folds_nothing(metric):
            self.rows, self.factors = queries.folded, queries.factors
        else:
            self.rows, exponents = scale_rows(features)
            squares = queries.squares
            self.factors = (
                power_of_two(exponents)
                if squares is None
                else torch.where(squares > 0, correct_roots(squares).reciprocal(), 0.0)
            )
        self.lengths = None  # of unit rows
        if queries.squares is None:
            self.lengths = torch.linalg.vector_norm(self.rows, dim=1).mul_(self.factors)

    def scores(self, queries: CanonicalQueries, pairs: _Pairs) -> tuple[Float[Tensor, " pairs"], Float[Tensor, " n"]]:
        """Scores of some pairs of these queries, and how far each of a query may be off."""
        factors = queries.factors
        products = pair_products(queries.folded, pairs.rows, self.rows, pairs.columns)
        products.mul_(factors.index_select(0, pairs.rows)).mul_(self.factors.index_select(0, pairs.columns))
        reach = torch.linalg.vector_norm(queries.folded, dim=1).mul_(factors)
        if self.lengths is not None:
            reach *= factors.new_zeros(len(reach)).scatter_reduce_(
                0, pairs.rows, self.lengths.index_select(0, pairs.columns), "amax"
            )
        # of the sum, and half as much of the norms beneath it, in 2⁻⁵³
        return products, reach * (self.rows.shape[1] + 32) * 2.0**-52


def _padded(items: FastRows, common: Shared | None) -> WholeRows:
    """In whole groups, so that sums are written where they shall stand."""
    whole = whole_rows(items, common=common)
    return replace(whole, rows=torch.nn.functional.pad(whole.rows, (0, 0, 0, whole.padded - len(whole.rows))))


def _joined(pairs: Iterable[_Pairs]) -> _Pairs:
    return _Pairs(*map(torch.cat, zip(*pairs, strict=True)))


def _uncrowded(pairs: _Pairs, most: int) -> _Pairs:
    """Without those of queries that have more."""
    crowded = torch.bincount(pairs.rows) > most
    return pairs.kept(places(~crowded.index_select(0, pairs.rows))) if bool(crowded.any()) else pairs


def _by_step(items: FastRows) -> tuple[FastRows, Int[Tensor, " n"]]:
    """Rows whose largest entries are alike stand together, as in whole numbers they share a step; and who they are.

    It parts neighbours, too, which often stand in a row, and of which a group tells one.
    """
    peaks = torch.maximum(items.rows.amax(1), -items.rows.amin(1))
    order = (peaks if items.factors is None else peaks * items.factors).argsort()
    factors = None if items.factors is None else items.factors[order]
    return replace(items, rows=items.rows[order], factors=factors), order
