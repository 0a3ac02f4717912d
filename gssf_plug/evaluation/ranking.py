"""Exact ranks of every positive by counting, and the measures that are sums over them.

    rank_i = i + #{kept negatives that score at least as high as the i-th best positive}        i = 1 … R

The few positives of a query are sorted; of the other items only those that reach the lowest positive are looked up
among them: one comparison for most items and O(log R) for the rest, without sorting the items. A tie is lost by the
positive (the usual protocols leave it to their sort). Everything that is kept of a query is added to a `Tally`, so
chunks and processes only add.

Which gallery items carry a query's label, as lists of pairs: the gallery is grouped once, no N×M mask is formed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gssf_plug.distributed import add_over_processes
from gssf_plug.errors import ArgumentError
from gssf_plug.evaluation.counting import certain_counts, certain_pairs
from gssf_plug.evaluation.scores import ScoredPart, ScoredQueries
from gssf_plug.metric.exact.fast_scores import Open
from gssf_plug.metric.exact.reaching import group_peaks
from gssf_plug.metric.options import checked_count

__all__ = [
    "LabelGroups",
    "Matches",
    "Ranked",
    "Tally",
    "checked_ranks",
    "query_chunks",
    "rank_positives",
]

SCORES_AT_ONCE = 8_388_608  # of one chunk: 32 MB in float32; in smaller ones the product repacks the gallery too often
COUNTED_AT_ONCE = 2_097_152  # of these: what counting makes of more would leave the cache
OPEN_AT_ONCE = 1_048_576  # comparisons of open pairs with positives: 8 MB in float64
MOST_PAIRS = 3  # one in so many scores may be left to a float32 product of its pair before one in float64 costs less
MOST_OPEN = 64  # and so many to a closer look


class Matches(NamedTuple):
    """Pairs of equal label between some queries and the gallery.

    `rows` (query, in increasing order) and `columns` (gallery item) of each pair; `counted` is True for a positive and
    False for a pair that the protocol takes out of the ranking, such as an item with itself; `grades` where some
    positives are worth more than others.
    """

    rows: Int[Tensor, " pairs"]
    columns: Int[Tensor, " pairs"]
    counted: Bool[Tensor, " pairs"]
    grades: Float[Tensor, " pairs"] | None = None


class LabelGroups:
    """The gallery's items grouped by label.

    Args:
        labels: label of every gallery item.
    """

    def __init__(self, labels: Int[Tensor, " m"]) -> None:
        self._labels, self._items = labels.sort(stable=True)

    def matches(self, labels: Int[Tensor, " n"]) -> Matches:
        """All pairs of a query with the items of its label, every pair counted."""
        first = torch.searchsorted(self._labels, labels)
        counts = torch.searchsorted(self._labels, labels, right=True) - first
        rows = torch.repeat_interleave(torch.arange(len(labels), device=labels.device), counts)
        before = counts.cumsum(0) - counts
        places = (first - before)[rows] + torch.arange(len(rows), device=rows.device)
        return Matches(rows, self._items[places], torch.ones_like(rows, dtype=torch.bool))


@dataclass(frozen=True)
class Ranked:
    """Ranks of the positives of some queries, those without a positive left out.

    Args:
        ranks: rank from 1 of the i-th best positive in column i; anything beyond a query's positives.
        positives: R, how many positives each query has, at least 1.
        grades: grade of the i-th best positive in column i; 1 where none were given.
    """

    ranks: Int[Tensor, "queries most"]
    positives: Int[Tensor, " queries"]
    grades: Float[Tensor, "queries most"]

    @property
    def valid(self) -> Bool[Tensor, "queries most"]:
        """Where `ranks` holds a positive."""
        return self.places <= self.positives[:, None]

    @property
    def places(self) -> Int[Tensor, " most"]:
        """1, 2, …: the i of the i-th best positive."""
        return torch.arange(1, self.ranks.shape[1] + 1, device=self.ranks.device)

    @property
    def precisions(self) -> Float[Tensor, "queries most"]:
        """Precision at each positive, i / rank_i; zero where there is none."""
        return (self.places.double() / self.ranks.clamp_min(1)).masked_fill(~self.valid, 0.0)


def rank_positives(queries: ScoredQueries, matches: Matches, limit: Int[Tensor, " n"] | None = None) -> Ranked:
    """Ranks of the positives among the items that no pair takes out.

    Args:
        queries: some queries with the gallery.
        matches: the positives, and the pairs taken out of the ranking; no pair twice.
        limit: per query the last rank, at least 1, that is asked for: a rank beyond may come out as another beyond it,
            which spares looking at most items. None (default) asks for all.

    Raises:
        ArgumentError: scores that are not finite.
    """
    positives = _Positives(queries, matches, limit)
    above = torch.zeros_like(positives.columns)
    for columns in queries.parts:
        part = queries.part(columns)
        _take_out(part, matches, slice(0, len(above)))
        above += _level_or_above(queries, part, positives, matches)
    counts, most = positives.counts, above.shape[1]
    index = (counts[:, None] - torch.arange(1, most + 1, device=above.device)).clamp_min(0)  # best first
    ranks = above.gather(1, index) + torch.arange(1, most + 1, device=above.device)
    kept = counts > 0
    return Ranked(ranks[kept], counts[kept], positives.grades.gather(1, index)[kept])


class _Positives:
    """The positives of some queries, by rising score, of equal ones the higher grade first; padded with infinity.

    Args:
        queries: the queries whose positives these are.
        matches: all pairs.
        limit: per query the last rank that is asked for.
    """

    def __init__(self, queries: ScoredQueries, matches: Matches, limit: Int[Tensor, " n"] | None) -> None:
        self.limit = limit
        rows, columns = matches.rows[matches.counted], matches.columns[matches.counted]
        graded = matches.grades is not None
        scores = (queries.canonical if graded else queries.close)(rows, columns)
        self.counts = torch.bincount(rows, minlength=len(queries.slack))
        most = max(1, int(self.counts.max()))
        place = torch.arange(len(rows), device=rows.device) - (self.counts.cumsum(0) - self.counts)[rows]
        self.scores = scores.new_full((len(self.counts), most), float("inf"))
        self.columns, self.grades = torch.zeros_like(self.scores, dtype=torch.long), torch.ones_like(self.scores)
        self.scores[rows, place], self.columns[rows, place] = scores, columns
        if matches.grades is not None:
            self.grades[rows, place] = matches.grades[matches.counted].to(self.grades)
            self._reorder(self.grades.sort(dim=1, descending=True, stable=True).indices)
        self._reorder(self.scores.sort(dim=1, stable=True).indices)

    def _reorder(self, order: Int[Tensor, "n most"]) -> None:
        self.scores, self.columns, self.grades = (
            one.gather(1, order) for one in (self.scores, self.columns, self.grades)
        )

    def settle(self, queries: ScoredQueries, rows: Int[Tensor, " some"]) -> None:
        """Replace the scores of some rows by the canonical ones, which differ from them by less than the slack."""
        own, place = (self.scores[rows] < float("inf")).nonzero(as_tuple=True)
        self.scores[rows[own], place] = queries.canonical(rows[own], self.columns[rows[own], place])
        self.scores[rows] = self.scores[rows].sort(dim=1).values  # may swap neighbours, between which no item lies


def _take_out(part: ScoredPart, matches: Matches, rows: slice) -> None:
    """Give every matched pair of the part a score below all others."""
    inside = (matches.columns >= part.columns.start) & (matches.columns < part.columns.stop)
    inside &= (matches.rows >= rows.start) & (matches.rows < rows.stop)
    part.fast[matches.rows[inside] - rows.start, matches.columns[inside] - part.columns.start] = float("-inf")


def _level_or_above(
    queries: ScoredQueries, part: ScoredPart, positives: _Positives, matches: Matches
) -> Int[Tensor, "n most"]:
    """For each of a row's ascending positives how many items of the part score at least as high."""
    low, high = part.around(positives.scores - queries.slack[:, None], positives.scores + queries.slack[:, None])
    size = max(1, COUNTED_AT_ONCE // max(1, part.fast.shape[1]))
    counts = torch.empty_like(positives.columns)
    for start in range(0, len(low), size):
        rows = slice(start, min(start + size, len(low)))
        counts[rows] = _counted(queries, part, rows, Open(low[rows], high[rows]), positives, matches, rows)
    return counts


def _counted(
    queries: ScoredQueries,
    part: ScoredPart,
    here: slice,
    bounds: Open,
    positives: _Positives,
    matches: Matches,
    rows: slice,
) -> Int[Tensor, "n most"]:
    """The same for the queries `rows`, which are `here` in the part; `bounds` of their positives on fast scores."""
    fast, beyond, peaks = part.fast[here], None, None
    if positives.limit is not None:
        peaks, limit = group_peaks(fast), positives.limit[rows]
        if int(limit.max()) <= peaks.shape[1]:
            # so many items score at least as high as the limit-th peak, each in a group of its own
            reached = peaks.float().topk(int(limit.max())).values.gather(1, limit[:, None] - 1)
            beyond = bounds.high < reached
            bounds = Open(*(bound.masked_fill(beyond, torch.inf) for bound in bounds))
    counts, at = certain_counts(fast, *bounds, peaks if beyond is not None else None)
    own = at.div(fast.shape[1], rounding_mode="floor")
    columns = at - own * fast.shape[1]
    too_many = part.can_be_finer and len(at) * MOST_PAIRS > fast.numel()
    if not too_many:
        scores, slack = positives.scores[rows], queries.slack[rows, None]
        sure, still = certain_pairs(part.pairs(own + here.start, columns), own, scores - slack, scores + slack)
        own, columns = own[still], columns[still]
        too_many = part.can_be_finer and len(still) * MOST_OPEN > fast.numel()
    finer = part.finer(here) if too_many else None
    if finer is not None:
        _take_out(finer, matches, rows)
        own_scores, slack = positives.scores[rows], queries.slack[rows, None]
        bounds = finer.around(own_scores - slack, own_scores + slack)
        return _counted(queries, finer, slice(0, len(fast)), bounds, positives, matches, rows)
    counts += sure
    if beyond is not None:
        counts[beyond] = fast.shape[1]
    _resolve(queries, positives, counts, rows, own, columns + part.columns.start)
    return counts


def _resolve(
    queries: ScoredQueries,
    positives: _Positives,
    counts: Int[Tensor, "some most"],
    some: slice,
    rows: Int[Tensor, " open"],
    columns: Int[Tensor, " open"],
) -> None:
    """Add each open pair of `some` queries to the counts of the positives that it equals or beats, by a closer look."""
    size = max(1, OPEN_AT_ONCE // counts.shape[1])
    for own, other in zip((rows + some.start).split(size), columns.split(size), strict=True):
        scores = queries.close(own, other)
        near = ((scores[:, None] - positives.scores[own]).abs() <= 2 * queries.slack[own, None]).any(1)
        if bool(near.any()):
            positives.settle(queries, own[near].unique())
            scores[near] = queries.canonical(own[near], other[near])
        counts.index_add_(0, own - some.start, (scores[:, None] >= positives.scores[own]).long())


@dataclass
class Tally:
    """Sums of measures over queries; adding is all that chunks and processes need.

    Args:
        sums: per measure its sum over the queries so far.
        queries: how many queries had a positive.
    """

    sums: dict[str, float] = field(default_factory=dict)
    queries: int = 0

    def add(self, measures: dict[str, Float[Tensor, " queries"]], queries: int) -> None:
        """Add the measures of some queries, one value each."""
        for name, values in measures.items():
            self.sums[name] = self.sums.get(name, 0.0) + values.double().sum().item()
        self.queries += queries

    def percentages(
        self, names: Sequence[str], distributed: bool, device: torch.device, labels: str, nothing: str
    ) -> dict[str, float]:
        """Means over the queries of all processes, in %.

        Args:
            names: the measures; a process without queries has not seen any.
            distributed: add over processes first.
            device: where the process group communicates.
            labels: the argument to blame where no query has a positive.
            nothing: and what to say then.
        """
        counts = [self.sums.get(name, 0.0) for name in names] + [float(self.queries)]
        where = device if distributed else torch.device("cpu")
        *sums, queries = add_over_processes(
            torch.tensor(counts, dtype=torch.float64, device=where), distributed
        ).tolist()
        if queries == 0:
            raise ArgumentError(
                labels, "give some query a positive", nothing, "Check that both sides use one numbering."
            )
        return {name: 100 * total / queries for name, total in zip(names, sums, strict=True)}


def query_chunks(queries: int, gallery: int, query_chunk: int | None) -> list[slice]:
    """Slices of the queries whose scores are held at once.

    Args:
        queries: how many there are.
        gallery: scores per query.
        query_chunk: queries in a chunk; None takes as many as 32 MB of float32 scores hold.
    """
    size = max(1, SCORES_AT_ONCE // max(1, gallery))
    if query_chunk is not None:
        remedy = "Use the default, or less where memory is short."
        size = checked_count("query_chunk", query_chunk, remedy, rule="be None or at least 1")
    return [slice(start, min(start + size, queries)) for start in range(0, queries, size)]


def checked_ranks(name: str, ranks: Iterable[int]) -> tuple[int, ...]:
    """The places k of R@k, as given; read once, so a generator will do.

    Raises:
        ArgumentError: no whole numbers, none at all, or one below 1.
    """
    remedy = "Give such as (1, 5, 10)."
    if not isinstance(ranks, Iterable) or isinstance(ranks, str | bytes) or getattr(ranks, "ndim", 1) == 0:
        raise ArgumentError(name, "hold at least one place from 1", repr(ranks), remedy)
    places = tuple(ranks)
    whole = all(isinstance(place, int | np.integer) and not isinstance(place, bool) for place in places)
    if not places or not whole or min(places) < 1:
        raise ArgumentError(name, "hold at least one place from 1", repr(places), remedy)
    return tuple(int(place) for place in places)
