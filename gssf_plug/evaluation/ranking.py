"""Exact ranks of every positive by counting, and the measures that are sums over them.

    rank_i = i + #{kept negatives that score at least as high as the i-th best positive}        i = 1 … R

The few positives of a query are sorted; of the other items only those that reach the lowest positive are looked up
among them: one comparison for most items and O(log R) for the rest, without sorting the items. A tie is lost by the
positive (the usual protocols leave it to their sort). Everything that is kept of a query is added to a `Tally`, so
chunks and processes only add. Scores are held for a chunk of queries at a time, positives and open pairs for a block of
chunks: what is done for each of them once is done for many together.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gssf_plug.arguments import LARGEST, checked_count, listed
from gssf_plug.distributed import add_over_processes
from gssf_plug.errors import ArgumentError
from gssf_plug.evaluation.negatives import NegativeCounts
from gssf_plug.evaluation.positives import Matches, Positives
from gssf_plug.evaluation.scores import ScoredQueries
from gssf_plug.metric.exact.threads import slices

__all__ = ["Block", "Ranked", "Tally", "checked_ranks", "query_blocks", "query_chunks", "rank_positives"]

SCORES_AT_ONCE = 8_388_608  # of one chunk: 32 MB in float32; in smaller ones the product repacks the gallery too often
MOST_AT_ONCE = 2048  # queries of one chunk: what is made for each, such as its bins, may be wider than a small gallery
BLOCK_ENTRIES = 2_097_152  # of the features, and of the positives, of queries ranked together: 16 MB in float64


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


def rank_positives(
    queries: ScoredQueries, matches: Matches, limit: Int[Tensor, " n"] | None = None, *, at_once: int | None = None
) -> Ranked:
    """Ranks of the positives among the items that no pair takes out.

    Args:
        queries: some queries with the gallery.
        matches: the positives, and the pairs taken out of the ranking; no pair twice.
        limit: per query the last rank, at least 1, that is asked for: a rank beyond may come out as another beyond it,
            which spares looking at most items. None (default) asks for all.
        at_once: queries whose scores are held at once; None (default) takes all.

    Raises:
        ArgumentError: scores that are not finite.
    """
    positives = Positives(queries, matches, limit)
    above = torch.zeros_like(positives.columns)
    for columns in queries.parts:
        negatives = NegativeCounts(queries, columns, positives, matches)
        negatives.add(slice(0, len(above)), at_once)
        above += negatives.finish()
    counts, most = positives.counts, above.shape[1]
    index = (counts[:, None] - torch.arange(1, most + 1, device=above.device)).clamp_min(0)  # best first
    ranks = above.gather(1, index) + torch.arange(1, most + 1, device=above.device)
    kept = counts > 0
    return Ranked(ranks[kept], counts[kept], positives.grades.gather(1, index)[kept])


@dataclass
class Tally:
    """Sums of measures over queries; adding is all that chunks and processes need.

    Args:
        sums: per measure its sum over the queries so far.
        queries: number of queries that had a positive.
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


class Block(NamedTuple):
    """Queries that are ranked together, and how many of them have their scores held at once."""

    rows: slice
    at_once: int


def query_blocks(chunks: Sequence[slice], matched: Int[Tensor, " queries"], width: int) -> list[Block]:
    """Consecutive chunks joined to blocks whose features and positives take some tens of megabytes.

    Args:
        chunks: chunks of the queries, in order, all of one size but the last.
        matched: number of gallery items that each query is matched with.
        width: channels of a query.
    """
    blocks: list[Block] = []
    widest = width
    for chunk in chunks:
        most = max(width, int(matched[chunk].max()))
        rows = slice(blocks[-1].rows.start, chunk.stop) if blocks else chunk
        if blocks and (rows.stop - rows.start) * max(widest, most) <= BLOCK_ENTRIES:
            blocks[-1], widest = blocks[-1]._replace(rows=rows), max(widest, most)
        else:
            blocks.append(Block(chunk, chunk.stop - chunk.start))
            widest = most
    return blocks


def query_chunks(queries: int, gallery: int, query_chunk: int | None) -> list[slice]:
    """Slices of the queries whose scores are held at once.

    Args:
        queries: number of queries.
        gallery: scores per query.
        query_chunk: queries in a chunk; None takes as many as 32 MB of float32 scores hold, at most 2,048.
    """
    size = min(MOST_AT_ONCE, max(1, SCORES_AT_ONCE // max(1, gallery)))
    if query_chunk is not None:
        remedy = "Use the default, or less where memory is short."
        size = checked_count("query_chunk", query_chunk, remedy, rule="be None or at least 1")
    return slices(queries, size)


def checked_ranks(name: str, ranks: Iterable[int]) -> tuple[int, ...]:
    """The places k of R@k, as given; read once, so a generator will do.

    Raises:
        ArgumentError: no whole numbers, none at all, or one below 1.
    """
    remedy = "Give such as (1, 5, 10)."
    places = listed(ranks)
    if places is None:
        raise ArgumentError(name, "hold at least one place from 1", repr(ranks), remedy)
    whole = all(isinstance(place, int | np.integer) and not isinstance(place, bool) for place in places)
    if not places or not whole or min(places) < 1 or max(places) > LARGEST:
        raise ArgumentError(name, "hold at least one place from 1", repr(places), remedy)
    return tuple(int(place) for place in places)
