"""Training, validation and test: who asks, among which documents, and what is known to belong together.

A share for validation is split by query; the documents stay the whole corpus. Where queries and documents are one list,
an item is never compared with itself, and items linked by pairs stay together, or a pair would be learned from its one
end and measured from the other.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from gssf_plug.errors import ArgumentError
from gssf_plug.losses.score_gradients import ListedPairs
from gssf_plug.metric.arrays import as_array, to_tensor
from gssf_plug.retrieval.fitting.known_pairs import KnownPairs, read_pairs
from gssf_plug.retrieval.fitting.sides import Side, read_side

__all__ = ["Part", "Triple", "read_part", "same_rows", "split_queries"]

Triple = tuple[Any, Any, Any] | tuple[Any, Any, Any, Any]
SCORES_OF_VALIDATION = 2_000_000_000  # queries × documents, at most: some half a minute a row on two cores
LEAST_QUERIES = 1_000  # of validation, where the share has as many
FEW_QUERIES = 100  # fewer than these are measured on fold by fold


@dataclass(frozen=True)
class Part:
    """Queries of one part of the data.

    Args:
        queries: the side they are rows of.
        documents: the corpus.
        pairs: documents of every row of `queries`.
        ignored: documents that are neither right nor wrong for a query; left out of every ranking and loss.
        rows: rows of `queries` that ask.
        itself: both sides are one list, and an item is not compared with itself.
    """

    queries: Side
    documents: Side
    pairs: KnownPairs
    ignored: KnownPairs | None
    rows: Int[Tensor, " n"]
    itself: bool

    def asking(self) -> "Part":
        """Only the queries that know a document."""
        return replace(self, rows=self.rows[self.pairs.counts[self.rows] > 0])

    def known(
        self, rows: Int[Tensor, " n"], documents: Int[Tensor, " m"], column_of: Int[Tensor, " all"]
    ) -> ListedPairs:
        """What belongs together and what counts neither way among some queries and documents.

        Args:
            rows: rows of `queries`.
            documents: rows of `documents`.
            column_of: a table of -1s, one for each document; left as it came.
        """
        column_of[documents] = torch.arange(len(documents))
        known, width = self.pairs.among(rows, column_of), len(documents)
        out = [torch.empty(0, dtype=torch.long)]
        if self.ignored is not None:
            places, columns = self.ignored.among(rows, column_of)
            out.append(places * width + columns)
        if self.itself:
            own = column_of[rows]
            places = (own >= 0).nonzero()[:, 0]
            out.append(places * width + own[places])
        column_of[documents] = -1
        return ListedPairs(*known, torch.cat(out))


def read_part(names: tuple[str, str, str, str], given: Triple, device: torch.device | None, dim: int | None) -> Part:
    """A part of what the caller gave: queries, documents, pairs and, if there is a fourth, ignored pairs."""
    sides = as_array(given[0]), as_array(given[1])
    queries = read_side(names[0], sides[0], device, dim)
    asked, held = (_readable(name, side) for name, side in zip(names[:2], sides, strict=True))
    itself = given[0] is given[1] or same_rows(asked, held)
    documents = queries if itself else read_side(names[1], sides[1], device or queries.device, queries.dim)
    sizes = len(queries), len(documents)
    ignored = None
    if len(given) == 4 and given[3] is not None:
        ignored = read_pairs(names[3], given[3], *sizes)
    pairs = read_pairs(names[2], given[2], *sizes)
    pairs = pairs if ignored is None else pairs.without(ignored)
    pairs = pairs.without_itself() if itself else pairs
    if len(pairs) == 0:
        rule = "hold a pair of two different items that is not ignored"
        raise ArgumentError(names[2], rule, "none", "Give the pairs that belong together.")
    return Part(queries, documents, pairs, ignored, torch.arange(len(queries)), itself).asking()


def _readable(name: str, side: Any) -> Any:
    """Lists as a tensor, whose rows can be compared; the rest as it is."""
    return to_tensor(name, side) if isinstance(side, list | tuple) else side


def same_rows(queries: Any, documents: Any) -> bool:
    """Whether both sides are one list: one object, or equal rows."""
    if queries is documents:
        return True
    if getattr(queries, "shape", None) != getattr(documents, "shape", None) or type(queries) is not type(documents):
        return False
    if isinstance(queries, Tensor) and (documents.is_meta or documents.layout != queries.layout):
        return False
    equal: Callable[[Any, Any], Any] = torch.equal if isinstance(queries, Tensor) else _equal_arrays
    return bool(equal(queries, documents))


def _equal_arrays(a: Any, b: Any) -> bool:
    step = 65_536
    # in steps, so that a memory-mapped side is read and never held, and a difference ends it early
    return all(bool((a[at : at + step] == b[at : at + step]).all()) for at in range(0, len(a), step))


def split_queries(part: Part, share: float, seed: int) -> list[tuple[Part, Part]]:
    """Queries to train on and queries to measure on; several times, until every query was measured, where they are few.

    Args:
        part: all of them.
        share: share of the queries that is measured on. Fewer than 100 tell little: the queries are then cut into
            1/share folds, and each fold is measured on in its turn.
        seed: seed of the draw.

    Raises:
        ArgumentError: a share outside its range, or a single query.
    """
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
        rule = "be a share between 0 and 1, or (queries, documents, pairs)"
        raise ArgumentError("validation", rule, repr(share), "The default is 0.2.")
    count = len(part.rows)
    if count < 2:
        remedy = "Give more pairs, or a validation set of its own as (queries, documents, pairs)."
        raise ArgumentError("pairs", "name at least two queries", count, remedy)
    most = max(LEAST_QUERIES, SCORES_OF_VALIDATION // len(part.documents))
    wanted = min(max(1, round(share * count)), most, count - 1)
    folds = -(-count // wanted) if wanted < FEW_QUERIES else 1
    place = _places(part, wanted, seed)
    # `place` is where each query stands in the drawn order: a fold is the next `wanted` places of it
    chosen = [(place >= fold * wanted) & (place < (fold + 1) * wanted) for fold in range(folds)]
    return [
        (replace(part, rows=part.rows[~held]), replace(part, rows=part.rows[held]))
        for held in chosen
        if bool(held.any()) and not bool(held.all())
    ]


def _places(part: Part, wanted: int, seed: int) -> Int[Tensor, " n"]:
    """Each query's place in a random order; linked items share one, unless one group of them would fill a fold."""
    generator = torch.Generator().manual_seed(seed)
    group = _linked(part.pairs, len(part.documents))[part.rows] if part.itself else part.rows
    _, group, sizes = group.unique(return_inverse=True, return_counts=True)
    if int(sizes.max()) > max(wanted, 1) or len(sizes) < 2:
        group, sizes = torch.arange(len(part.rows)), torch.ones(len(part.rows), dtype=torch.long)
    order = torch.randperm(len(sizes), generator=generator)
    before = torch.empty_like(sizes)
    before[order] = sizes[order].cumsum(0) - sizes[order]
    return before[group]


def _linked(pairs: KnownPairs, items: int) -> Int[Tensor, " items"]:
    """A number for each item, equal for items linked by pairs: the least item that a chain of pairs leads to."""
    label = torch.arange(items)
    while True:
        least = torch.minimum(label[pairs.rows], label[pairs.items])
        new = label.scatter_reduce(0, pairs.rows, least, "amin").scatter_reduce(0, pairs.items, least, "amin")
        new = new[new]  # jump along the chain
        if torch.equal(new, label):
            return label
        label = new
