"""Which documents belong to which query, kept row by row: what a batch knows of itself costs its own pairs only."""

from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from gssf_plug.evaluation.relevance import read_relevance

__all__ = ["KnownPairs", "read_pairs"]


class KnownPairs:
    """Pairs sorted by query: the documents of query i are `items[offsets[i]:offsets[i + 1]]`.

    Args:
        rows: query of each pair, in increasing order; no pair twice.
        items: document of each pair.
        queries: number of queries.
        documents: number of documents.
    """

    def __init__(self, rows: Int[Tensor, " p"], items: Int[Tensor, " p"], queries: int, documents: int) -> None:
        self.rows, self.items, self.queries, self.documents = rows, items, queries, documents
        self.counts = torch.bincount(rows, minlength=queries)
        self.offsets = torch.nn.functional.pad(self.counts.cumsum(0), (1, 0))

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, queries: Int[Tensor, " n"]) -> tuple[Int[Tensor, " p"], Int[Tensor, " p"]]:
        """Pairs of these queries: the position of each one's query in `queries`, and its document."""
        counts = self.counts[queries]
        places = torch.repeat_interleave(torch.arange(len(queries)), counts)
        before = counts.cumsum(0) - counts
        # each query's slice of `items`, all slices by one index: where it starts there, less where it starts here
        return places, self.items[(self.offsets[queries] - before)[places] + torch.arange(len(places))]

    def kept(self, which: Bool[Tensor, " p"]) -> "KnownPairs":
        """Some of the pairs."""
        return KnownPairs(self.rows[which], self.items[which], self.queries, self.documents)

    def without(self, other: "KnownPairs") -> "KnownPairs":
        """These pairs less the `other` ones."""
        own, theirs = (pairs.rows * self.documents + pairs.items for pairs in (self, other))
        return self.kept(~torch.isin(own, theirs))

    def without_itself(self) -> "KnownPairs":
        """These pairs less those of an item with itself, where both sides are one list."""
        return self.kept(self.rows != self.items)

    def among(
        self, queries: Int[Tensor, " n"], column_of: Int[Tensor, " all"]
    ) -> tuple[Int[Tensor, " p"], Int[Tensor, " p"]]:
        """The pairs of these queries with some documents: the place of each one's query, and its document's column.

        Args:
            queries: numbers of the queries that are asked for.
            column_of: column of each document, -1 where it has none.
        """
        places, items = self.select(queries)
        columns = column_of.index_select(0, items)
        here = (columns >= 0).nonzero()[:, 0]
        return places.index_select(0, here), columns.index_select(0, here)


def read_pairs(name: str, pairs: Any, queries: int, documents: int) -> KnownPairs:
    """The pairs, in any form that `document_ranking` reads; a grade above 0 is a pair.

    Raises:
        ArgumentError: another form, or an index outside its side.
    """
    found = read_relevance(name, pairs, queries, documents)
    return KnownPairs(found.rows, found.columns, queries, documents)
