"""What one similarity is worth on validation queries: a measure for each query, among the whole corpus or a part of it.

Documents that fit are ranked in one piece, by the counting core of `gssf_plug.evaluation`. A larger corpus is read in
chunks, once for its positives and once to count what is above them: memory stays that of a chunk. There a document
within 1e-6 of a positive counts as above it, so that a tie is lost whatever the rounding.
"""

from dataclasses import replace
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gssf_plug.evaluation.ranking import Matches, Ranked, count_reaching, query_chunks, rank_positives
from gssf_plug.evaluation.scores import GivenScores
from gssf_plug.retrieval.fitting.measures import measured
from gssf_plug.retrieval.fitting.splits import Part

__all__ = ["Ranking", "Similarity", "look_of"]

LOOK_QUERIES, LOOK_DOCUMENTS = 2_000, 20_000  # of a look during training
LOOK_NUMBERS = 33_554_432  # of the documents of a look, at most: 128 MB
ALIKE = 1e-6  # scores of normalised rows that differ by less are a tie
SCORES_AT_ONCE = 8_388_608


class Similarity(Protocol):
    """Folds the query, leaves or changes the gallery; rows come normalised."""

    def fold(self, queries: Tensor, /) -> Tensor:
        """(N, D) -> (N, D)."""
        ...

    def gallery(self, items: Tensor, /) -> Tensor:
        """(M, D) -> (M, D)."""
        ...


class Ranking:
    """Some queries of a part, ranked among its documents.

    Args:
        part: queries, documents, pairs.
        measure: a key of `document_ranking`.
        documents: rows of the documents to rank among, with all that the queries know; None takes the whole corpus.
    """

    def __init__(self, part: Part, measure: str, documents: Int[Tensor, " m"] | None = None) -> None:
        self.part, self.measure = part, measure
        self.chosen = documents
        self.count = len(part.documents) if documents is None else len(documents)
        self._matches = self._matched()
        small = self.count * part.documents.dim <= LOOK_NUMBERS
        self._kept = part.documents.rows(slice(None) if documents is None else documents) if small else None

    @torch.no_grad()
    def values(self, similarity: Similarity) -> Float[Tensor, " n"]:
        """The measure of each query, in %."""
        ranked = self._in_one_piece(similarity) if self._kept is not None else self._in_chunks(similarity)
        return 100 * torch.cat([measured(part, self.measure) for part in ranked]).cpu()

    def covers(self, part: Part) -> bool:
        """Whether it ranks all queries of a part among all its documents."""
        return self.chosen is None and len(self.part.rows) == len(part.rows)

    def _in_one_piece(self, similarity: Similarity) -> list[Ranked]:
        assert self._kept is not None
        items, folded = similarity.gallery(self._kept), similarity.fold(self._queries())
        ranked = []
        for rows in query_chunks(len(folded), self.count, None):
            ranked.append(rank_positives(GivenScores(folded[rows] @ items.T).of(slice(None)), self._of(rows)))
        return ranked

    def _in_chunks(self, similarity: Similarity) -> list[Ranked]:
        """Ranks from counts that are added over chunks of documents."""
        folded, positives = similarity.fold(self._queries()), self._positives()
        counts = torch.bincount(positives.rows, minlength=len(folded))
        places = torch.arange(len(positives.rows)) - (counts.cumsum(0) - counts)[positives.rows]
        own = folded.new_full((len(folded), int(counts.max())), float("inf"))
        own[positives.rows, places] = self._scores_of(similarity, folded, positives)
        own = own.sort(dim=1).values
        above = torch.zeros(own.shape, dtype=torch.long, device=own.device)
        for chunk in self.part.documents.chunks():
            items = similarity.gallery(self.part.documents.rows(chunk))
            inside = (self._matches.columns >= chunk.start) & (self._matches.columns < chunk.stop)
            taken = self._matches.rows[inside], self._matches.columns[inside] - chunk.start
            step = max(1, SCORES_AT_ONCE // len(items))
            for at in range(0, len(folded), step):
                scores = folded[at : at + step] @ items.T
                here = (taken[0] >= at) & (taken[0] < at + step)
                scores[taken[0][here] - at, taken[1][here]] = float("-inf")
                above[at : at + step] += count_reaching(own[at : at + step] - ALIKE, scores)
        most = own.shape[1]
        index = (counts[:, None] - torch.arange(1, most + 1)).clamp_min(0)
        ranks = above.cpu().gather(1, index) + torch.arange(1, most + 1)
        return [Ranked(ranks, counts, torch.ones(ranks.shape, dtype=torch.float64))]

    def _queries(self) -> Float[Tensor, "n dim"]:
        return self.part.queries.rows(self.part.rows)

    def _scores_of(self, similarity: Similarity, folded: Tensor, pairs: Matches) -> Float[Tensor, " pairs"]:
        step = max(1, SCORES_AT_ONCE // folded.shape[1])
        parts = zip(pairs.rows.split(step), pairs.columns.split(step), strict=True)
        rows = self.part.documents.rows
        return torch.cat([(folded[i] * similarity.gallery(rows(j))).sum(1) for i, j in parts])

    def _positives(self) -> Matches:
        kept = self._matches.counted
        return Matches(self._matches.rows[kept], self._matches.columns[kept], self._matches.counted[kept])

    def _matched(self) -> Matches:
        """Positives, then what is taken out of the ranking: ignored pairs, and an item with itself."""
        part = self.part
        rows, columns = part.pairs.select(part.rows)
        out = [] if part.ignored is None else [part.ignored.select(part.rows)]
        if part.itself:
            own = torch.arange(len(part.rows)), part.rows
            out = [
                (
                    torch.cat([own[0], *(r[c != part.rows[r]] for r, c in out)]),
                    torch.cat([own[1], *(c[c != part.rows[r]] for r, c in out)]),
                )
            ]
        known = len(rows)
        rows, columns = torch.cat([rows, *(r for r, _ in out)]), torch.cat([columns, *(c for _, c in out)])
        counted = torch.arange(len(rows)) < known
        if self.chosen is not None:
            column_of = torch.full((len(part.documents),), -1)
            column_of[self.chosen] = torch.arange(len(self.chosen))
            columns = column_of[columns]
            inside = columns >= 0
            rows, columns, counted = rows[inside], columns[inside], counted[inside]
        return Matches(rows, columns, counted)

    def _of(self, rows: slice) -> Matches:
        inside = (self._matches.rows >= rows.start) & (self._matches.rows < rows.stop)
        return Matches(
            self._matches.rows[inside] - rows.start, self._matches.columns[inside], self._matches.counted[inside]
        )


def look_of(part: Part, measure: str, seed: int) -> Ranking:
    """The ranking that training is watched by: at most 2,000 queries among at most 20,000 documents.

    The documents are all that these queries know, and others drawn from the corpus.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = part.rows
    if len(rows) > LOOK_QUERIES:
        rows = rows[torch.randperm(len(rows), generator=generator)[:LOOK_QUERIES].sort().values]
    chosen, most = replace(part, rows=rows), min(LOOK_DOCUMENTS, LOOK_NUMBERS // part.documents.dim)
    if len(part.documents) <= most:
        return Ranking(chosen, measure)
    known = part.pairs.select(rows)[1]
    drawn = torch.randint(len(part.documents), (most,), generator=generator)
    return Ranking(chosen, measure, torch.cat([known, drawn]).unique())
