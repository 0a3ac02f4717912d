"""What one similarity is worth on validation queries: a measure for each query, among the whole corpus or a part of it.

Documents that fit are ranked in one piece. A larger corpus is read in chunks, once for its positives and once to count
what is above them: memory stays that of a chunk. A document within 1e-6 of a positive counts as above it, so that a tie
is lost whatever the rounding.
"""

import copy
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gssf_plug.evaluation.counting import count_reaching
from gssf_plug.evaluation.options import finite_scores
from gssf_plug.evaluation.ranking import Ranked, query_chunks
from gssf_plug.retrieval.fitting.measures import measured
from gssf_plug.retrieval.fitting.splits import Part

__all__ = ["Ranking", "Similarity", "make_look"]

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


class _Pairs(NamedTuple):
    """Query of each pair, in increasing order, and its document."""

    rows: Int[Tensor, " pairs"]
    columns: Int[Tensor, " pairs"]

    def between(self, queries: slice) -> "_Pairs":
        """The pairs of some queries, numbered from the first of them."""
        first, last = torch.searchsorted(self.rows, torch.tensor([queries.start, queries.stop])).tolist()
        return _Pairs(self.rows[first:last] - queries.start, self.columns[first:last])

    def among(self, column_of: Int[Tensor, " all"]) -> "_Pairs":
        """The pairs whose document has a column; `column_of` holds -1 for one that has none."""
        columns = column_of[self.columns]
        return _Pairs(self.rows[columns >= 0], columns[columns >= 0])


class _Asked(NamedTuple):
    """Some queries with what is known of them, numbered from the first of them."""

    queries: slice
    positives: "_Positives"
    out: _Pairs  # taken out of the ranking

    def take_out(self, scores: Float[Tensor, "n m"]) -> None:
        """Positives are compared with the others, not with themselves; what counts neither way with nothing."""
        for rows, columns in (self.positives.pairs, self.out):
            scores[rows, columns] = float("-inf")


class _Positives:
    """The positives of some queries, and room for a number of each: one row a query, its best last.

    Args:
        pairs: query and document of each.
        queries: number of queries.
    """

    def __init__(self, pairs: _Pairs, queries: int) -> None:
        self.pairs = pairs
        self.counts = torch.bincount(pairs.rows, minlength=queries)
        self.places = torch.arange(len(pairs.rows)) - (self.counts.cumsum(0) - self.counts)[pairs.rows]
        self.most = int(self.counts.max())

    def ascending(self, scores: Float[Tensor, " p"]) -> Float[Tensor, "n most"]:
        """Their scores, row by row; infinity where a query has fewer."""
        own = scores.new_full((len(self.counts), self.most), float("inf"))
        own[self.pairs.rows, self.places] = scores
        return own.sort(dim=1).values

    def ranked(self, above: Int[Tensor, "n most"]) -> Ranked:
        """The rank of each positive, from the number of others that reach it."""
        index = (self.counts[:, None] - torch.arange(1, self.most + 1)).clamp_min(0)  # best first
        ranks = above.cpu().gather(1, index) + torch.arange(1, self.most + 1)
        return Ranked(ranks, self.counts, torch.ones(ranks.shape, dtype=torch.float64))


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
        self._known, self._out = self._matched()
        small = self.count * part.documents.dim <= LOOK_NUMBERS
        self._kept = part.documents.rows(slice(None) if documents is None else documents) if small else None
        asked = len(part.rows) * part.queries.dim <= LOOK_NUMBERS
        self._asked = part.queries.rows(part.rows) if small and asked else None

    @torch.no_grad()
    def values(self, similarity: Similarity) -> Float[Tensor, " n"]:
        """The measure of each query, in %."""
        ranked = self._in_one_piece(similarity) if self._kept is not None else [self._in_chunks(similarity)]
        return 100 * torch.cat([measured(part, self.measure) for part in ranked]).cpu()

    def covers(self, part: Part) -> bool:
        """Whether it ranks all queries of a part among all its documents."""
        return self.chosen is None and len(self.part.rows) == len(part.rows)

    def turned(self, axes: Float[Tensor, "dim dim"]) -> "Ranking | None":
        """The same of rows in other orthogonal axes; None where they are too many to be kept."""
        if self._kept is None or self._asked is None:
            return None
        other = copy.copy(self)
        other._kept, other._asked = self._kept @ axes, self._asked @ axes
        return other

    def _in_one_piece(self, similarity: Similarity) -> list[Ranked]:
        assert self._kept is not None
        items, folded, ranked = similarity.gallery(self._kept), similarity.fold(self._queries()), []
        for asked in self._pieces:
            scores, positives = finite_scores(folded[asked.queries] @ items.T), asked.positives
            own = positives.ascending(scores[positives.pairs.rows, positives.pairs.columns]) - ALIKE
            asked.take_out(scores)
            ranked.append(positives.ranked(count_reaching(own, scores)))
        return ranked

    @cached_property
    def _pieces(self) -> list[_Asked]:
        """All queries, as many at once as their scores may be many."""
        pieces = []
        for queries in query_chunks(len(self.part.rows), self.count, None):
            known, out = (pairs.between(queries) for pairs in (self._known, self._out))
            pieces.append(_Asked(queries, _Positives(known, queries.stop - queries.start), out))
        return pieces

    def _in_chunks(self, similarity: Similarity) -> Ranked:
        """Ranks from counts that are added over chunks of documents."""
        folded, positives = similarity.fold(self._queries()), _Positives(self._known, len(self.part.rows))
        own = positives.ascending(self._score_pairs(similarity, folded, self._known)) - ALIKE
        above = torch.zeros(own.shape, dtype=torch.long, device=own.device)
        rows, columns = (torch.cat(both) for both in zip(self._known, self._out, strict=True))
        for chunk in self.part.documents.chunks():
            items = similarity.gallery(self.part.documents.rows(chunk))
            inside = (columns >= chunk.start) & (columns < chunk.stop)
            taken = rows[inside], columns[inside] - chunk.start
            step = max(1, SCORES_AT_ONCE // len(items))
            for at in range(0, len(folded), step):
                scores = folded[at : at + step] @ items.T
                here = (taken[0] >= at) & (taken[0] < at + step)
                scores[taken[0][here] - at, taken[1][here]] = float("-inf")
                above[at : at + step] += count_reaching(own[at : at + step], scores)
        return positives.ranked(above)

    def _queries(self) -> Float[Tensor, "n dim"]:
        return self.part.queries.rows(self.part.rows) if self._asked is None else self._asked

    def _score_pairs(self, similarity: Similarity, folded: Tensor, pairs: _Pairs) -> Float[Tensor, " pairs"]:
        step = max(1, SCORES_AT_ONCE // folded.shape[1])
        parts = zip(pairs.rows.split(step), pairs.columns.split(step), strict=True)
        rows = self.part.documents.rows
        # row by row: a product of all queries with all documents would be thousands of times as large
        return torch.cat([(folded[i] * similarity.gallery(rows(j))).sum(1) for i, j in parts])

    def _matched(self) -> tuple[_Pairs, _Pairs]:
        """Positives, and what is taken out of the ranking: ignored pairs, and an item with itself."""
        part = self.part
        out = [] if part.ignored is None else [part.ignored.select(part.rows)]
        out += [(torch.arange(len(part.rows)), part.rows)] if part.itself else []
        rows, columns = (torch.cat(both) for both in zip(*out, strict=True)) if out else torch.empty(2, 0).long()
        order = rows.argsort(stable=True)
        known, taken = _Pairs(*part.pairs.select(part.rows)), _Pairs(rows[order], columns[order])
        if self.chosen is None:
            return known, taken
        column_of = torch.full((len(part.documents),), -1)
        column_of[self.chosen] = torch.arange(len(self.chosen))
        return known.among(column_of), taken.among(column_of)


def make_look(part: Part, measure: str, seed: int) -> Ranking:
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
