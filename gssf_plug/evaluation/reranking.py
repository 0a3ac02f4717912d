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
import functools
import itertools
import warnings
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gssf_plug.arguments import checked_count, checked_number
from gssf_plug.errors import ArgumentError
from gssf_plug.evaluation.options import (
    Rows,
    checked_features,
    checked_metric,
    promoted,
)
from gssf_plug.metric import GSSFMetric
from gssf_plug.metric.exact.pair_products import ascending, pair_products
from gssf_plug.metric.exact.plain_tensors import on_plain_tensors
from gssf_plug.metric.exact.threads import slices
from gssf_plug.metric.farthest import Ends, nearest_and_farthest

__all__ = ["KReciprocal"]

TILE = 512, 4096  # queries and items whose product is made at once: 16 MB
AT_ONCE = 4_194_304  # scores, pairs or entries of a table held at once, 16–32 MB
CACHED = 262_144  # of those that stay in the cache
TABLE = 1_048_576  # sums of shared mass made at once, 4 MB: in smaller parts, threads wait for each other more often
RUN = 8  # entries of one column that are read together
# one, and the whole numbers in which what adds up to one is added, by the dtype of the result
WHOLE = {torch.float32: (2.0**30, torch.int32), torch.float64: (2.0**60, torch.int64)}


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

    @on_plain_tensors
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
        ends = nearest_and_farthest(metric, features, self.k1 + 1)
        folded, indexed = _both_sides(metric, features)
        near = _neighbourhoods(ends, folded, indexed)
        encoding = _encode(folded, indexed, near, self.k1)
        if self.k2 > 1:
            encoding = _expand(encoding, near.indices[:, : self.k2])
        return self._blend(encoding, folded[: len(query)], indexed[len(query) :], near, features.dtype)

    def _blend(
        self, encoding: "_Sparse", folded: Tensor, gallery: Tensor, near: "_Near", dtype: torch.dtype
    ) -> Float[Tensor, "n m"]:
        """-((1 - λ) Jaccard + λ d): products of many queries, of which a few at a time are worked on in the cache."""
        queries, items = len(folded), len(gallery)
        one, whole = WHOLE[dtype]
        shared = _shared_mass(encoding, queries, one, whole)
        result = shared.view(dtype)  # takes its place, row by row
        best, slopes = near.best[:queries, None], self.weight * near.slopes[:queries, None]
        height, width = TILE
        products = folded.new_empty(height * width)  # written again and again: fresh memory costs time
        for chunk, columns in itertools.product(slices(queries, height), slices(items, width)):
            some = gallery[columns]
            count = chunk.stop - chunk.start
            scores = torch.mm(folded[chunk], some.T, out=products[: count * len(some)].view(count, -1))
            for part in slices(count, CACHED // width):
                rows = slice(chunk.start + part.start, chunk.start + part.stop)
                distance = scores[part].sub_(best[rows]).mul_(slopes[rows]).clamp_(-self.weight, 0)  # its negative
                mass = shared[rows, columns].double()
                jaccard = mass.div_(2 * one - mass).sub_(1)  # its negative
                torch.add(distance, jaccard, alpha=1 - self.weight, out=result[rows, columns])
        return result


class _Near(NamedTuple):
    """The k1 + 1 nearest of every item, itself first, and the range of its scores."""

    indices: Int[Tensor, "items near"]
    best: Float[Tensor, " items"]
    worst: Float[Tensor, " items"]

    @property
    def slopes(self) -> Float[Tensor, " items"]:
        """1 / (best - worst); 0 where all that is left of the spread is rounding."""
        spread = self.best - self.worst
        equal = spread <= 1e-12 * self.best.abs()
        return spread.masked_fill(equal, 1.0).reciprocal_().masked_fill_(equal, 0.0)

    def distances(self, scores: Float[Tensor, " pairs"], of: Int[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
        """Scores of the items `of` as distances in 0 … 1."""
        return (self.best.index_select(0, of) - scores).mul_(self.slopes.index_select(0, of)).clamp_(0, 1)


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


def _starts(rows: Int[Tensor, " entries"], count: int) -> Int[Tensor, " rows_and_end"]:
    """Where each of `count` rows begins among entries sorted by row."""
    return torch.cat([rows.new_zeros(1), torch.bincount(rows, minlength=count).cumsum(0)])


def _neighbourhoods(ends: Ends, folded: Tensor, indexed: Tensor) -> _Near:
    """The lists of exact search, in which ties stand in the order of index, each item first in its own."""
    found, farthest = ends
    own = torch.arange(len(found), device=found.device)
    others = found != own[:, None]
    others[others.all(1), -1] = False  # the item itself is not among its nearest: the last makes room
    others = found[others].view(len(found), -1)
    scores = [_pair_scores(folded, indexed, own, other) for other in (own, others[:, 0], farthest)]
    return _Near(torch.cat([own[:, None], others], dim=1), torch.maximum(*scores[:2]), torch.minimum(*scores[::2]))


def _both_sides(metric: GSSFMetric, features: Float[Tensor, "items dim"]) -> tuple[Tensor, Tensor]:
    """Features folded, and as gallery, in float64: what rounding could turn round lies below the result's own."""
    precise = copy.deepcopy(metric).double()
    plain = copy.deepcopy(precise)
    plain.normalize = False  # of rows that are normalised already
    indexed = torch.empty_like(features, dtype=torch.float64)
    folded = torch.empty_like(indexed) if bool(plain.deviation().any()) else indexed  # cosine folds nothing
    for part in slices(len(features), CACHED // features.shape[1]):
        indexed[part] = precise.gallery(features[part].double())
        if folded is not indexed:
            folded[part] = plain.fold(indexed[part])
    return folded, indexed


def _encode(folded: Tensor, indexed: Tensor, near: _Near, k1: int) -> _Sparse:
    """V before its expansion: weights exp(-d) over R*(i), summing to one."""
    items = len(folded)
    half = near.indices[:, : round(k1 / 2) + 1]
    reciprocal, half_reciprocal = _reciprocal(near.indices, half.shape[1])
    pairs = []
    parts = slices(items, AT_ONCE // max(items, near.indices.shape[1] * half.shape[1]))
    members = torch.zeros(parts[0].stop * items, dtype=torch.bool, device=folded.device)  # of R, rows by items
    for part in parts:
        row, place = reciprocal[part].nonzero(as_tuple=True)
        neighbour = near.indices[part][row, place]
        own = row * items + neighbour
        candidates = (row * items)[:, None] + half.index_select(0, neighbour)
        mutual = half_reciprocal.index_select(0, neighbour)
        members[own] = True
        present = members[candidates] & mutual
        accepted = 3 * present.sum(1) > 2 * mutual.sum(1)
        members[own] = False
        added = candidates[mutual & ~present & accepted[:, None]]
        pairs.append(torch.unique(torch.cat([own, added])) + part.start * items)
    pair = torch.cat(pairs)
    row = pair.div(items, rounding_mode="floor")
    column = pair - row * items
    weights = near.distances(_pair_scores(folded, indexed, row, column), row).neg_().exp_()
    sums = weights.new_zeros(items).index_add_(0, row, weights)
    return _Sparse(_starts(row, items), column, weights.div_(sums.index_select(0, row)))


def _reciprocal(
    indices: Int[Tensor, "items near"], half: int
) -> tuple[Bool[Tensor, "items near"], Bool[Tensor, "items half"]]:
    """Which neighbours of an item have it among theirs; and which of the first `half` among their first `half`."""
    items, near = indices.shape
    lists = indices.int()
    mutual = torch.empty_like(indices, dtype=torch.bool)
    half_mutual = mutual.new_empty(items, half)
    for part in slices(items, CACHED // near**2):
        theirs = lists.index_select(0, lists[part].flatten()).view(-1, near, near)
        found = theirs == torch.arange(part.start, part.stop, dtype=lists.dtype, device=lists.device)[:, None, None]
        mutual[part], half_mutual[part] = found.any(-1), found[:, :half, :half].any(-1)
    return mutual, half_mutual


def _pair_scores(folded: Tensor, indexed: Tensor, rows: Tensor, columns: Tensor) -> Float[Tensor, " pairs"]:
    return pair_products(folded, rows, indexed, columns)


def _expand(encoding: _Sparse, near: Int[Tensor, "items k2"]) -> _Sparse:
    """Each row becomes the mean of the rows of its k2 nearest."""
    items, k2 = near.shape
    by_rows = _multiplies_by_rows(near.device.type)
    start = torch.arange(0, near.numel() + 1, k2, device=near.device)
    means = start, near.flatten(), encoding.values.new_full((near.numel(),), 1 / k2)
    first, second = (torch.sparse_csr_tensor(*x, (items, items), check_invariants=False) for x in (means, encoding))
    if by_rows:
        product = torch.sparse.mm(first, second)
    else:
        product = torch.sparse.mm(first.to_sparse_coo(), second.to_sparse_coo()).to_sparse_csr()
    return _Sparse(product.crow_indices(), product.col_indices(), product.values())


@functools.cache
def _multiplies_by_rows(device: str) -> bool:
    """Whether torch multiplies sparse matrices by rows there (on a CPU by MKL); asked once, as torch warns once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one = torch.ones(1, 1, device=device).to_sparse_csr()
        try:
            torch.sparse.mm(one, one)
        except (NotImplementedError, RuntimeError):
            return False
    return True


def _shared_mass(encoding: _Sparse, queries: int, one: float, whole: torch.dtype) -> Int[Tensor, "queries items"]:
    """Σ_j min(V(q, j), V(g, j)) of queries q with gallery items g, through the columns that both have.

    V is rounded to whole numbers, `one` for 1, whose sums are the same in any order.
    """
    count = len(encoding.start) - 1
    items = count - queries
    query = encoding.rows(slice(0, queries))
    first, runs, gallery = _columns_in_runs(encoding.rows(slice(queries, count)), count, one, whole)
    first, runs = (x.index_select(0, query.columns) for x in (first, runs))  # of each entry of the queries
    before = runs.cumsum(0) - runs
    value, row = _whole(query.values, one, whole), query.row_of_entries()
    shared = value.new_empty(queries, items)
    for rows in slices(queries, TABLE // items):
        table = shared[rows].zero_().view(-1)
        start, stop = query.start[[rows.start, rows.stop]].tolist()
        group = (before[start:stop] * RUN).div_(AT_ONCE, rounding_mode="floor")
        _, sizes = torch.unique_consecutive(group, return_counts=True)  # entries of so many runs that they can be held
        for own in itertools.pairwise(itertools.accumulate(sizes.tolist(), initial=start)):
            entries = slice(*own)
            owner = torch.repeat_interleave(runs[entries])
            from_here = first[entries] - before[entries] + before[entries.start]
            run = from_here.index_select(0, owner).add_(torch.arange(len(owner), device=owner.device))
            both = gallery.index_select(0, run)
            mass = torch.minimum(both[:, RUN:], value[entries].index_select(0, owner)[:, None])
            base = ((row[entries] - rows.start) * items).to(whole)
            place = both[:, :RUN] + base.index_select(0, owner)[:, None]
            table.index_add_(0, place.view(-1), mass.view(-1))
    return shared


def _columns_in_runs(
    matrix: _Sparse, width: int, one: float, whole: torch.dtype
) -> tuple[Tensor, Tensor, Int[Tensor, "runs two"]]:
    """Entries by column, in runs of `RUN`, first their rows, then their values: a run is copied at once.

    Returns the first run of each column, how many it has, and the runs. What fills the last of them adds 0 to row 0.
    """
    counts = torch.bincount(matrix.columns, minlength=width)
    runs = (counts + RUN - 1).div_(RUN, rounding_mode="floor")
    first = runs.cumsum(0) - runs
    order = ascending(matrix.columns)
    shift = (first * RUN - counts.cumsum(0) + counts).index_select(0, matrix.columns.index_select(0, order))
    place = shift.add_(torch.arange(len(order), device=order.device))
    place += place.div(RUN, rounding_mode="floor").mul_(RUN)
    entries = torch.zeros(int(runs.sum()), 2 * RUN, dtype=whole, device=order.device)
    flat = entries.view(-1)
    flat.index_copy_(0, place, matrix.row_of_entries().to(whole).index_select(0, order))
    flat.index_copy_(0, place.add_(RUN), _whole(matrix.values, one, whole).index_select(0, order))
    return first, runs, entries


def _whole(values: Float[Tensor, " entries"], one: float, whole: torch.dtype) -> Int[Tensor, " entries"]:
    return (values * one).round_().to(whole)
