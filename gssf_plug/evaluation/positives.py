"""Which gallery items count for which queries: pairs of equal label, and the positives by rising score.

Pairs are lists: the gallery is grouped once, no N×M mask is formed.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gssf_plug.evaluation.scores import ScoredQueries

__all__ = ["LabelGroups", "Matches", "Positives"]


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

    def between(self, rows: slice) -> slice:
        """Which of the pairs are those of some queries."""
        first, last = torch.searchsorted(self.rows, torch.tensor([rows.start, rows.stop], device=self.rows.device))
        return slice(int(first), int(last))


class LabelGroups:
    """The gallery's items grouped by label.

    Args:
        labels: label of every gallery item.
    """

    def __init__(self, labels: Int[Tensor, " m"]) -> None:
        self._labels, self._items = labels.sort(stable=True)

    def counts(self, labels: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """How many items carry each label."""
        return torch.searchsorted(self._labels, labels, right=True) - torch.searchsorted(self._labels, labels)

    def matches(self, labels: Int[Tensor, " n"]) -> Matches:
        """All pairs of a query with the items of its label, every pair counted."""
        first, counts = torch.searchsorted(self._labels, labels), self.counts(labels)
        rows = torch.repeat_interleave(torch.arange(len(labels), device=labels.device), counts)
        before = counts.cumsum(0) - counts
        places = (first - before)[rows] + torch.arange(len(rows), device=rows.device)
        return Matches(rows, self._items[places], torch.ones_like(rows, dtype=torch.bool))


class Positives:
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

    def take(self, rows: slice, table: Float[Tensor, "n m"]) -> None:
        """The same from canonical scores of some rows with the whole gallery."""
        own = table.gather(1, self.columns[rows]).masked_fill_(self.scores[rows] == float("inf"), float("inf"))
        self.scores[rows] = own.sort(dim=1).values
