r"""Inner products of chosen pairs of rows: what a fast product of all pairs has left open.

On a CPU torch's sampled product (`torch.sparse.sampled_addmm`) makes them without copying a row. Its sparse matrix has
the gallery's items as rows, so that each item is read once while the queries, which are few, stay in the cache: some
30 ns for two rows of 512 in float32 on two cores, where gathering both rows takes 1,500. A small part of a gallery
stays in the cache, too, and is read in any order: so where queries are many, one such part is read after the other.
"""

import functools
import itertools
import warnings

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gssf_plug.metric.exact.sums import scale_rows

__all__ = ["ascending", "converted_products", "pair_products"]

FEW_PAIRS = 1024  # below, setting up the sparse matrix costs more than it saves
ENTRIES_AT_ONCE = 131_072  # of gathered rows: 1 MB in float64, which stays in the cache
CACHED = 2_097_152  # entries of a gallery that stays in the cache: its items may then be read in any order
PAIRS_OF_BLOCK = 4096  # of items that stay in the cache: with fewer, to divide them costs more than it saves
SHORT = 1 << 16  # numbers below are sorted by numpy's radix sort
CONVERTED_AT_ONCE = 524_288  # entries of a gallery: 4 MB in float64
FEW_OF_ITEMS = 3  # pairs for so many items: below, converting all items costs more than gathering some


@torch.no_grad()
def pair_products(
    queries: Float[Tensor, "n dim"],
    rows: Int[Tensor, " pairs"],
    items: Float[Tensor, "m dim"],
    columns: Int[Tensor, " pairs"],
) -> Float[Tensor, " pairs"]:
    """Products of query `rows[p]` with item `columns[p]`, summed in their dtype in any order.

    Args:
        queries: N×D, float32 or float64.
        rows: numbers of queries.
        items: M×D of the same dtype and device, such as a memory-mapped gallery: only the rows named are read.
        columns: numbers of items, in any order.
    """
    dense = len(rows) * 16 >= len(items) and len(rows) <= len(queries) * len(items)  # torch takes no more
    if len(rows) < FEW_PAIRS or not dense or not queries.numel() or not _samples(queries.device.type):
        return _gathered(queries, rows, items, columns)
    cached, dim = items.numel() <= CACHED, items.shape[1]
    blocks = queries.numel() > CACHED >= dim and len(rows) * CACHED > PAIRS_OF_BLOCK * items.numel()
    if (cached or blocks) and bool((rows[1:] >= rows[:-1]).all()):
        return _sampled(queries, rows, items, columns) if cached else _by_blocks(queries, rows, items, columns)
    order = ascending(columns)
    sampled = _sampled(items, columns[order], queries, rows[order])
    return torch.empty_like(sampled).index_copy_(0, order, sampled)


def _by_blocks(queries: Tensor, rows: Tensor, items: Tensor, columns: Tensor) -> Float[Tensor, " pairs"]:
    """Of many queries: each is read once for every block of items, which stays in the cache, not for every pair."""
    size = CACHED // items.shape[1]
    block = columns.div(size, rounding_mode="floor")
    order = ascending(block)  # within a block, the rows still ascend
    sizes = block.bincount().tolist()
    pairs = zip(rows.index_select(0, order).split(sizes), columns.index_select(0, order).split(sizes), strict=True)
    parts = [
        pair_products(queries, own, items[start : start + size], other - start)
        for start, (own, other) in zip(itertools.count(0, size), pairs, strict=False)
    ]
    return torch.empty(len(rows), dtype=items.dtype).index_copy_(0, order, torch.cat(parts))


def _sampled(first: Tensor, rows: Tensor, second: Tensor, columns: Tensor) -> Float[Tensor, " pairs"]:
    """Products of row `rows[p]` of the first, ascending, with row `columns[p]` of the second."""
    wanted = torch.sparse_csr_tensor(
        torch.nn.functional.pad(torch.bincount(rows, minlength=len(first)).cumsum(0), (1, 0)),
        columns,
        first.new_zeros(len(rows)),  # which are multiplied by beta and added
        (len(first), len(second)),
        check_invariants=False,
    )
    return torch.sparse.sampled_addmm(wanted, first, second.T, beta=0.0).values()


@torch.no_grad()
def converted_products(
    queries: Float[Tensor, "n dim"],
    rows: Int[Tensor, " pairs"],
    gallery: Float[Tensor, "m dim"],
    columns: Int[Tensor, " pairs"],
    *,
    scaled: bool = False,
) -> Float[Tensor, " pairs"]:
    """The same with items of any float dtype on any device, some of which are converted to the queries' at a time.

    Args:
        queries: N×D in float32 or float64.
        rows: numbers of queries.
        gallery: M×D.
        columns: numbers of items, in any order.
        scaled: whether float64 items are first divided by the power of two of their largest entry; default False.
    """
    scaled = scaled and gallery.dtype == torch.float64
    if len(rows) * FEW_OF_ITEMS <= len(gallery) or not _samples(queries.device.type):
        return _converted_and_gathered(queries, rows, gallery, columns, scaled)
    order = ascending(columns)
    rows, columns = rows.index_select(0, order), columns.index_select(0, order)
    size = max(1, CONVERTED_AT_ONCE // max(1, gallery.shape[1]))
    starts = torch.arange(0, len(gallery) + size, size)
    ends = torch.searchsorted(columns, starts).tolist()
    precise = queries.new_empty(min(size, len(gallery)), gallery.shape[1])
    parts = []
    for number, (first, last) in enumerate(zip(ends[:-1], ends[1:], strict=True)):
        if first < last:
            start = number * size
            some = gallery[start : start + size]
            items = scale_rows(some.to(queries.device))[0] if scaled else precise[: len(some)].copy_(some)
            parts.append(pair_products(queries, rows[first:last], items, columns[first:last] - start))
    products = torch.cat(parts)
    return torch.empty_like(products).index_copy_(0, order, products)


def _converted_and_gathered(
    queries: Tensor, rows: Tensor, gallery: Tensor, columns: Tensor, scaled: bool
) -> Float[Tensor, " pairs"]:
    dim = gallery.shape[1]
    size = max(1, min(len(rows), 2 * ENTRIES_AT_ONCE // max(1, dim)))
    # written again and again, so that no fresh memory has to be found for every piece
    given, left, right = gallery.new_empty(size, dim), *queries.new_empty(2, size, dim)
    parts = []
    for own, other in zip(rows.split(size), columns.split(size), strict=True):
        items = torch.index_select(gallery, 0, other.to(gallery.device), out=given[: len(own)])
        items = right[: len(own)].copy_(scale_rows(items)[0] if scaled else items)
        parts.append(torch.index_select(queries, 0, own, out=left[: len(own)]).mul_(items).sum(1))
    return torch.cat(parts) if parts else queries.new_empty(0)


def _gathered(queries: Tensor, rows: Tensor, items: Tensor, columns: Tensor) -> Float[Tensor, " pairs"]:
    size = max(1, ENTRIES_AT_ONCE // max(1, queries.shape[1]))
    pieces = zip(rows.split(size), columns.split(size), strict=True)
    # not by `vecdot`, a matrix product to torch, whose factors a switch of the user may round
    parts = [queries.index_select(0, a).mul_(items.index_select(0, b)).sum(1) for a, b in pieces]
    return torch.cat(parts) if parts else queries.new_empty(0)


def ascending(columns: Int[Tensor, " pairs"]) -> Int[Tensor, " pairs"]:
    """What sorts whole numbers from 0 on; equal ones stay in their order.

    Args:
        columns: the numbers, at least one.
    """
    if columns.device.type == "cpu" and int(columns.max()) < SHORT:  # numpy then counts instead of comparing
        return torch.from_numpy(columns.numpy().astype(np.uint16).argsort(kind="stable"))
    return columns.argsort(stable=True)


@functools.cache
def _samples(device: str) -> bool:
    """Whether torch samples products there; said once, since torch warns once that its sparse matrices are young."""
    if device != "cpu":
        return False
    one = torch.ones(1, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            torch.sparse.sampled_addmm(one.to_sparse_csr(), one, one, beta=0.0)
        except (AttributeError, NotImplementedError, RuntimeError):
            return False
    return True
