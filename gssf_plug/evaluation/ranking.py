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
from gssf_plug.evaluation.options import finite_scores

__all__ = [
    "LabelGroups",
    "Matches",
    "Ranked",
    "Tally",
    "checked_ranks",
    "count_reaching",
    "query_chunks",
    "rank_positives",
]

SCORES_AT_ONCE = 8_388_608  # of one chunk: 32 MB in float32; in smaller ones the product repacks the gallery too often
COUNTED_AT_ONCE = 2_097_152  # of these: what counting makes of more would leave the cache


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
        labels: of every gallery item.
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
        grades: of the i-th best positive in column i; 1 where none were given.
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


def rank_positives(scores: Float[Tensor, "n m"], matches: Matches) -> Ranked:
    """Ranks of the positives among the items that no pair takes out.

    Args:
        scores: one row per query; changed in place.
        matches: the positives, and the pairs taken out of the ranking; no pair twice.

    Raises:
        ArgumentError: scores that are not finite.
    """
    scores = finite_scores(scores)
    rows, columns = matches.rows[matches.counted], matches.columns[matches.counted]
    grades = torch.ones(len(rows), dtype=torch.float64) if matches.grades is None else matches.grades[matches.counted]
    counts = torch.bincount(rows, minlength=len(scores))
    most = max(1, int(counts.max()))
    place = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
    own, worth = scores.new_full((len(scores), most), float("inf")), scores.new_zeros(len(scores), most).double()
    own[rows, place], worth[rows, place] = scores[rows, columns], grades.to(worth)
    worth, order = worth.sort(dim=1, descending=True)  # so that among equal scores the lowest grade is placed first
    own, by_score = own.gather(1, order).sort(dim=1, stable=True)  # ascending; the padding comes last
    scores[matches.rows, matches.columns] = float("-inf")
    rows_at_once = max(1, COUNTED_AT_ONCE // max(1, scores.shape[1]))
    pieces = zip(own.split(rows_at_once), scores.split(rows_at_once), strict=True)
    above = torch.cat([count_reaching(*piece) for piece in pieces])
    index = (counts[:, None] - torch.arange(1, most + 1, device=rows.device)).clamp_min(0)  # best first
    ranks = above.gather(1, index) + torch.arange(1, most + 1, device=rows.device)
    kept = counts > 0
    return Ranked(ranks[kept], counts[kept], worth.gather(1, by_score).gather(1, index)[kept])


def count_reaching(own: Float[Tensor, "n most"], scores: Float[Tensor, "n m"]) -> Int[Tensor, "n most"]:
    """For each of a row's ascending `own` how many of its scores are at least as high.

    Binary search of all high scores at once; a row's bins begin at row · width, and `bins` walks from there.
    """
    rows, most = own.shape
    width = 1 << most.bit_length()
    steps = torch.nn.functional.pad(own, (0, width - most), value=float("inf")).flatten()
    high = (scores >= own[:, :1]).flatten().nonzero()[:, 0]
    values = scores.flatten()[high]
    bins = high.div_(scores.shape[1], rounding_mode="floor").mul_(width)
    while (width := width // 2) > 0:
        bins.add_(steps[bins + (width - 1)] <= values, alpha=width)
    counts = torch.bincount(bins, minlength=len(steps)).reshape(rows, -1)
    return counts.flip(1).cumsum(1).flip(1)[:, 1 : most + 1]


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
    size = query_chunk if query_chunk is not None else max(1, SCORES_AT_ONCE // max(1, gallery))
    if size < 1:
        raise ArgumentError(
            "query_chunk", "be None or at least 1", size, "Use the default, or less where memory is short."
        )
    return [slice(start, min(start + size, queries)) for start in range(0, queries, size)]


def checked_ranks(name: str, ranks: Iterable[int]) -> tuple[int, ...]:
    """The places k of R@k, as given; read once, so a generator will do.

    Raises:
        ArgumentError: no whole numbers, none at all, or one below 1.
    """
    remedy = "Give such as (1, 5, 10)."
    if not isinstance(ranks, Iterable):
        raise ArgumentError(name, "hold at least one place from 1", repr(ranks), remedy)
    places = tuple(ranks)
    whole = all(isinstance(place, int | np.integer) and not isinstance(place, bool) for place in places)
    if not places or not whole or min(places) < 1:
        raise ArgumentError(name, "hold at least one place from 1", repr(places), remedy)
    return tuple(int(place) for place in places)
