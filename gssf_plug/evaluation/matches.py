"""Which gallery items carry a query's label, as lists of pairs: the gallery is grouped once, no N×M mask is formed."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

__all__ = ["LabelGroups", "Matches"]


class Matches(NamedTuple):
    """Pairs of equal label between some queries and the gallery.

    `rows` (query, in increasing order) and `columns` (gallery item) of each pair; `counted` is True for a positive and
    False for a pair that the protocol takes out of the ranking, such as an item with itself.
    """

    rows: Int[Tensor, " pairs"]
    columns: Int[Tensor, " pairs"]
    counted: Bool[Tensor, " pairs"]


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
