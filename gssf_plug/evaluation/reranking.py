r"""K-reciprocal re-ranking (Zhong et al., CVPR 2017), exact, on neighbour lists: N×N is walked in chunks, never kept.

    d(i, j)   = (best_i - s(i, j)) / (best_i - worst_i)       for cosine the usual ‖x - y‖² over its largest value
    N(i, k)   = the k nearest of i, itself first
    R(i, k)   = {j in N(i, k): i in N(j, k)},   R*(i) = R(i, k1) and each R(j, k1/2) that lies to two thirds in it
    V(i, j)   = exp(-d(i, j)) on R*(i), summing to 1; then the mean of V over N(i, k2)
    d'(q, g)  = (1 - λ) (1 - Σ_j min(V(q, j), V(g, j)) / (2 - Σ_j min)) + λ d(q, g)

Everything but d' has k entries per row, so time goes into one pass of scores and memory into the result. `best` and
`worst` make d lie in 0 … 1 for a learned metric too, whose scores have no fixed range; an item is put first in its own
list by its index, as a learned metric does not promise it.
"""

import copy
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gssf_plug.errors import ArgumentError
from gssf_plug.evaluation.options import (
    Rows,
    checked_features,
    checked_metric,
    promoted,
)
from gssf_plug.evaluation.ranking import query_chunks
from gssf_plug.metric import GSSFMetric, topk
from gssf_plug.metric.exact.pair_products import pair_products
from gssf_plug.metric.options import checked_count, checked_number

__all__ = ["KReciprocal"]

PAIRS_AT_ONCE = 4_194_304  # index triples or scores held at once, 16–32 MB


@dataclass(frozen=True, kw_only=True)
class KReciprocal:
    """Re-rank a gallery for all queries together: `KReciprocal()(query, gallery, metric)` gives scores N×M.

    Pass it to `reid_ranking(..., rerank=KReciprocal())`. Queries support each other, so it is a protocol of its own:
    name it beside the number.

    Args:
        k1: length of the neighbour lists; default 20, as in the source.
        k2: number of neighbours whose encodings are averaged; default 6, as in the source. 1 leaves that out.
        weight: share λ of the original distance, 0 … 1; default 0.3, as in the source.

    Raises:
        ArgumentError: a value is outside its range, or k1 is not below the number of items; at the call what
            `reid_ranking` refuses in features and metric.
    """

    k1: int = 20
    k2: int = 6
    weight: float = 0.3

    def __post_init__(self) -> None:
        for name, value in (("k1", self.k1), ("k2", self.k2)):
            checked_count(name, value, "The source uses k1=20 and k2=6.")
        if self.k2 > self.k1 + 1:
            raise ArgumentError("k2", f"be at most k1 + 1 = {self.k1 + 1}", self.k2, "The source uses k1=20 and k2=6.")
        rule, remedy = "lie between 0 and 1", "The source uses 0.3."
        checked_number("weight", self.weight, rule, remedy, lambda number: 0 <= number <= 1)

    @torch.no_grad()
    def __call__(
        self,
        query: Float[Tensor | np.ndarray, "n dim"] | Rows,
        gallery: Float[Tensor | np.ndarray, "m dim"] | Rows,
        metric: GSSFMetric | None = None,
    ) -> Float[Tensor, "n m"]:
        """The negative of d', so that the best is the highest."""
        query = checked_features("query", query, metric)
        gallery = checked_features("gallery", gallery, metric, query.shape[1])
        items = len(query) + len(gallery)
        if self.k1 >= items:
            raise ArgumentError("k1", f"be below the number of items, {items}", self.k1, "Lower it.")
        metric = checked_metric(metric, query)
        features = promoted(torch.cat([query, gallery]))
        precise = copy.deepcopy(metric).double()  # what rounding could turn round lies below the result's own
        folded, indexed = precise.fold(features.double()), precise.gallery(features.double())
        near = _neighbourhoods(metric, features, folded, indexed, self.k1)
        encoding = _encode(folded, indexed, near, self.k1)
        if self.k2 > 1:
            encoding = _expand(encoding, near.indices[:, : self.k2], items)
        return self._blend(encoding, folded[: len(query)], indexed[len(query) :], near).to(features.dtype)

    def _blend(self, encoding: "_Sparse", folded: Tensor, gallery: Tensor, near: "_Near") -> Float[Tensor, "n m"]:
        """-((1 - λ) Jaccard + λ d), some queries at a time."""
        queries, items = len(folded), len(folded) + len(gallery)
        inverse = encoding.transposed(items)
        result = folded.new_empty(queries, len(gallery))
        for rows in query_chunks(queries, items, max(1, PAIRS_AT_ONCE // items)):
            shared = _shared_mass(encoding.rows(rows), inverse, rows.stop - rows.start, items)[:, queries:]
            distance = near.distance(folded[rows] @ gallery.T, torch.arange(rows.start, rows.stop)[:, None])
            jaccard = 1 - shared / (2 - shared)
            torch.add(jaccard * (self.weight - 1), distance, alpha=-self.weight, out=result[rows])
        return result


class _Near(NamedTuple):
    """The k1 + 1 nearest of every item, itself first, and the range of its scores."""

    indices: Int[Tensor, "items near"]
    best: Float[Tensor, " items"]
    worst: Float[Tensor, " items"]

    def distance(self, scores: Tensor, of: Tensor) -> Tensor:
        """Scores of the items `of` as distances in 0 … 1."""
        best, spread = self.best[of], self.best[of] - self.worst[of]
        equal = spread <= 1e-12 * best.abs()  # all that is left of the spread is rounding
        return ((best - scores) / spread.masked_fill(equal, 1.0)).clamp_(0, 1).masked_fill_(equal, 0.0)


class _Sparse(NamedTuple):
    """A sparse matrix by rows: row i holds `columns` and `values` from start[i] to start[i + 1]."""

    start: Int[Tensor, " rows_and_end"]
    columns: Int[Tensor, " entries"]
    values: Float[Tensor, " entries"]

    def rows(self, part: slice) -> "_Sparse":
        first, last = int(self.start[part.start]), int(self.start[part.stop])
        return _Sparse(
            self.start[part.start : part.stop + 1] - first, self.columns[first:last], self.values[first:last]
        )

    def row_of_entries(self) -> Int[Tensor, " entries"]:
        counts = self.start.diff()
        return torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)

    def transposed(self, width: int) -> "_Sparse":
        order = self.columns.argsort(stable=True)
        return _Sparse(_starts(self.columns, width), self.row_of_entries()[order], self.values[order])


def _starts(rows: Int[Tensor, " entries"], count: int) -> Int[Tensor, " rows_and_end"]:
    """Where each of `count` rows begins among entries sorted by row."""
    return torch.cat([rows.new_zeros(1), torch.bincount(rows, minlength=count).cumsum(0)])


def _neighbourhoods(metric: GSSFMetric, features: Tensor, folded: Tensor, indexed: Tensor, k1: int) -> _Near:
    """The lists by exact search, so that ties stand in the order of index, each item first in its own."""
    own = torch.arange(len(features), device=features.device)
    found = topk(metric, features, features, k1 + 1).indices
    others = found != own[:, None]
    others[others.all(1), -1] = False  # the item itself is not among its nearest: the last makes room
    others = found[others].view(len(found), k1)
    # the fold is linear: the best of -x is the worst of x
    farthest = topk(metric, -features, features, 1).indices[:, 0]
    ends = [_pair_scores(folded, indexed, own, other) for other in (own, others[:, 0], farthest)]
    return _Near(torch.cat([own[:, None], others], dim=1), torch.maximum(*ends[:2]), torch.minimum(*ends[::2]))


def _encode(folded: Tensor, indexed: Tensor, near: _Near, k1: int) -> _Sparse:
    """V before its expansion: weights exp(-d) over R*(i), summing to one."""
    items = len(folded)
    half = near.indices[:, : round(k1 / 2) + 1]
    reciprocal, half_reciprocal = _reciprocal(near.indices), _reciprocal(half)
    rows, columns = [], []
    for part in _parts(items, near.indices.shape[1] ** 2 * half.shape[1]):
        own, kept = near.indices[part], reciprocal[part]
        candidates, mutual = half[own], half_reciprocal[own] & kept[:, :, None]  # (items, k1 + 1, k1/2 + 1)
        present = (candidates[..., None] == own.masked_fill(~kept, -1)[:, None, None, :]).any(-1) & mutual
        accepted = present.sum(-1) > 2 / 3 * mutual.sum(-1)
        members = torch.cat([own, candidates.flatten(1)], dim=1)
        chosen = torch.cat([kept, (mutual & accepted[..., None]).flatten(1)], dim=1)
        row, place = chosen.nonzero(as_tuple=True)
        pair = torch.unique((row + part.start) * items + members[row, place])
        rows.append(pair // items)
        columns.append(pair % items)
    row, column = torch.cat(rows), torch.cat(columns)
    weights = torch.exp(-near.distance(_pair_scores(folded, indexed, row, column), row))
    sums = weights.new_zeros(items).index_add_(0, row, weights)
    return _Sparse(_starts(row, items), column, weights / sums[row])


def _reciprocal(indices: Int[Tensor, "items near"]) -> Bool[Tensor, "items near"]:
    """Which neighbours of an item have it among theirs."""
    items, near = indices.shape
    mutual = torch.empty_like(indices, dtype=torch.bool)
    for part in _parts(items, near**2):
        own = torch.arange(part.start, part.stop, device=indices.device)[:, None, None]
        mutual[part] = (indices[indices[part]] == own).any(-1)
    return mutual


def _pair_scores(folded: Tensor, indexed: Tensor, rows: Tensor, columns: Tensor) -> Float[Tensor, " pairs"]:
    parts = [pair_products(folded, rows[part], indexed, columns[part]) for part in _parts(len(rows), 4)]
    return torch.cat(parts)


def _expand(encoding: _Sparse, near: Int[Tensor, "items k2"], items: int) -> _Sparse:
    """Each row becomes the mean of the rows of its k2 nearest."""
    k2 = near.shape[1]
    widest = int(encoding.start.diff().max())
    rows, columns, values = [], [], []
    for part in _parts(items, k2 * widest):
        source = near[part].flatten()
        target = torch.arange(part.start, part.stop, device=near.device).repeat_interleave(k2)
        entry, owner = _entries(encoding, source)
        pair, inverse = torch.unique(target[owner] * items + encoding.columns[entry], return_inverse=True)
        total = encoding.values.new_zeros(len(pair)).index_add_(0, inverse, encoding.values[entry] / k2)
        rows.append(pair // items)
        columns.append(pair % items)
        values.append(total)
    return _Sparse(_starts(torch.cat(rows), items), torch.cat(columns), torch.cat(values))


def _shared_mass(some: _Sparse, inverse: _Sparse, count: int, items: int) -> Float[Tensor, "rows items"]:
    """Σ_j min(V(q, j), V(g, j)) of some rows q with all items g, through the columns that both have."""
    shared = some.values.new_zeros(count * items)
    row = some.row_of_entries()
    work = inverse.start.diff()[some.columns].cumsum(0)
    _, sizes = torch.unique_consecutive(work // PAIRS_AT_ONCE, return_counts=True)
    for some_row, column, value in zip(
        *(x.split(sizes.tolist()) for x in (row, some.columns, some.values)), strict=True
    ):
        entry, owner = _entries(inverse, column)
        mass = torch.minimum(value[owner], inverse.values[entry])
        shared.index_add_(0, some_row[owner] * items + inverse.columns[entry], mass)
    return shared.reshape(count, items)


def _entries(matrix: _Sparse, rows: Int[Tensor, " some"]) -> tuple[Int[Tensor, " entries"], Int[Tensor, " entries"]]:
    """Positions of all entries of `rows`, one row after the other, and for each which of `rows` it belongs to."""
    counts = matrix.start.diff()[rows]
    owner = torch.repeat_interleave(torch.arange(len(rows), device=rows.device), counts)
    before = counts.cumsum(0) - counts
    return matrix.start[rows][owner] + torch.arange(len(owner), device=rows.device) - before[owner], owner


def _parts(count: int, cost: int) -> list[slice]:
    """Slices of `count` rows, of as many as `PAIRS_AT_ONCE` allows at `cost` each."""
    size = max(1, PAIRS_AT_ONCE // cost)
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]
