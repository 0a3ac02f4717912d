"""Which documents answer which query, read from any of the forms that people keep it in.

Everything becomes one list of pairs (query, document, grade), sorted by query and then by document, no pair twice.
"""

from collections.abc import Mapping, Sequence, Set
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gssf_plug.arguments import described
from gssf_plug.errors import ArgumentError
from gssf_plug.metric.arrays import check_has_values, to_tensor

__all__ = ["Relevance", "read_relevance"]

FORMS = (
    "Give index pairs (P, 2), as an array or as tuples (query, document); a boolean, numeric or sparse matrix "
    "queries × documents; one list of documents per query; or one mapping {document: grade} per query."
)
FINITE, ABOVE_ZERO = "hold finite grades", "A grade above 0 marks a relevant document."
MOST = 2**63  # of whole numbers in an array


class Relevance(NamedTuple):
    """Relevant pairs: `rows` (query, increasing), `columns` (document) and `grades` (above 0) of each."""

    rows: Int[Tensor, " pairs"]
    columns: Int[Tensor, " pairs"]
    grades: Float[Tensor, " pairs"]

    def of(self, queries: slice) -> "Relevance":
        """The pairs of some consecutive queries, numbered from the first of them."""
        bounds = torch.tensor([queries.start, queries.stop], device=self.rows.device)
        first, last = torch.searchsorted(self.rows, bounds).tolist()
        return Relevance(self.rows[first:last] - queries.start, self.columns[first:last], self.grades[first:last])


def read_relevance(name: str, relevant: Any, queries: int, documents: int) -> Relevance:
    """Pairs from what a caller gave.

    Args:
        name: name of the argument, as the caller writes it.
        relevant: (P, 2) whole numbers: pairs (query, document), also where the matrix would have two columns; a list
            of tuples (query, document), also where there are N of them; a dense or sparse (torch, scipy) matrix
            queries × documents whose entries above 0 are grades and True is 1; N lists or sets of document numbers, or
            the column of a table that holds them; N mappings {document number: grade}.
        queries: number N of queries.
        documents: number M of documents.

    Raises:
        ArgumentError: the relevance has another form or shape, names numbers outside the queries or documents, or holds
            grades that are not finite.
    """
    relevant = _column(relevant)
    if hasattr(relevant, "tocoo"):  # scipy's sparse matrices and arrays
        matrix = relevant.tocoo()
        _check_shape(name, tuple(matrix.shape), queries, documents)
        found = matrix.row, matrix.col, matrix.data
    elif isinstance(relevant, Tensor | np.ndarray):
        found = _from_array(name, to_tensor(name, relevant), queries, documents)
    elif isinstance(relevant, Sequence) and not isinstance(relevant, str | bytes):
        found = _from_tuples(relevant) if _are_pairs(relevant) else _from_lists(name, relevant, queries)
    else:
        raise ArgumentError(name, "say which documents answer which query", type(relevant).__name__, FORMS)
    rows, columns = (torch.as_tensor(part, dtype=torch.long).cpu() for part in found[:2])
    grades = torch.as_tensor(found[2]).to(torch.float64).cpu()
    _check_numbers(name, rows, "queries", queries)
    _check_numbers(name, columns, "documents", documents)
    if not bool(grades.isfinite().all()):
        pair = int((~grades.isfinite()).nonzero()[0])
        got = f"{float(grades[pair])} for query {int(rows[pair])} and document {int(columns[pair])}"
        raise ArgumentError(name, FINITE, got, ABOVE_ZERO)
    kept = grades > 0
    return _sorted_once(rows[kept], columns[kept], grades[kept], documents)


def _column(relevant: Any) -> Any:
    """The column of a table as a list of its entries, since lists of equal length are no matrix of grades."""
    if isinstance(relevant, Tensor | Sequence) or hasattr(relevant, "tocoo") or not hasattr(relevant, "__array__"):
        return relevant
    values = np.asarray(relevant)
    return list(values) if values.dtype == object else values


def _from_array(name: str, array: Tensor, queries: int, documents: int) -> tuple[Tensor, Tensor, Tensor]:
    check_has_values(name, array)
    if array.is_complex() or array.is_nested or array.is_quantized:
        raise ArgumentError(name, "hold real grades", described(array), FORMS)
    whole = not array.is_floating_point() and not array.is_complex() and array.dtype != torch.bool
    if array.layout != torch.strided:
        _check_shape(name, tuple(array.shape), queries, documents)
        coo = array.to_sparse_coo().coalesce()
        return coo.indices()[0], coo.indices()[1], coo.values()
    if whole and array.ndim == 2 and array.shape[1] == 2:
        return array[:, 0], array[:, 1], torch.ones(len(array))
    _check_shape(name, tuple(array.shape), queries, documents)
    rows, columns = array.nonzero(as_tuple=True)
    return rows, columns, array[rows, columns]


def _are_pairs(given: Sequence[Any]) -> bool:
    """Whether every entry is a tuple of two whole numbers; lists of two stay the documents of one query."""
    return len(given) > 0 and all(
        isinstance(one, tuple) and len(one) == 2 and all(map(_is_whole, one)) for one in given
    )


def _is_whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and -MOST <= int(value) < MOST


def _from_tuples(pairs: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor, Tensor]:
    array = torch.from_numpy(np.array(pairs, dtype=np.int64))
    return array[:, 0], array[:, 1], torch.ones(len(array))


def _from_lists(name: str, lists: Sequence[Any], queries: int) -> tuple[list[int], list[int], list[float]]:
    if len(lists) != queries:
        got = f"{len(lists)} entries for {queries} queries"
        raise ArgumentError(name, "hold one list of documents per query", got, FORMS)
    rows: list[int] = []
    columns: list[int] = []
    grades: list[float] = []
    for query, own in enumerate(lists):
        numbers = _documents(own)
        if numbers is None:
            got = f"{own!r} for query {query}"
            raise ArgumentError(name, "hold one list of documents per query", got, FORMS)
        if wrong := [number for number in numbers if not _is_whole(number)]:
            got = f"{wrong[0]!r} for query {query}"
            raise ArgumentError(name, "name documents by their row, a whole number", got, FORMS)
        rows += [query] * len(numbers)
        columns += map(int, numbers)
        grades += _grades(name, query, own) if isinstance(own, Mapping) else [1.0] * len(numbers)
    return rows, columns, grades


def _documents(own: Any) -> list[Any] | None:
    """What one query lists; None where that is no list, as a single number, though numpy and torch can iterate it."""
    if isinstance(own, Set | Mapping):
        return list(own)
    if isinstance(own, str | bytes) or not hasattr(own, "__iter__") or getattr(own, "ndim", 1) == 0:
        return None
    try:
        numbers = (own if isinstance(own, Tensor) else np.asarray(own)).tolist()
    except (RuntimeError, TypeError, ValueError):  # lists of unequal length in it, or tensors of another device
        numbers = list(own)
    return numbers if isinstance(numbers, list) else [numbers]


def _grades(name: str, query: int, own: Mapping[int, Any]) -> list[float]:
    grades = []
    for document, grade in own.items():
        try:
            grades.append(float(grade))
        except (OverflowError, RuntimeError, TypeError, ValueError):
            got = f"{grade!r} for query {query} and document {document}"
            raise ArgumentError(name, FINITE, got, ABOVE_ZERO) from None
    return grades


def _check_shape(name: str, shape: tuple[int, ...], queries: int, documents: int) -> None:
    if shape != (queries, documents):
        rule = f"be a matrix of {queries} queries × {documents} documents, or whole-number pairs (P, 2)"
        raise ArgumentError(name, rule, f"shape {shape}", FORMS)


def _check_numbers(name: str, numbers: Int[Tensor, " pairs"], of: str, count: int) -> None:
    outside = (numbers < 0) | (numbers >= count)
    if bool(outside.any()):
        pair = int(outside.nonzero()[0])
        got = f"{int(numbers[pair])} in pair {pair}"
        raise ArgumentError(
            name, f"name rows of `{of}`, 0 … {count - 1}", got, "Count from 0, in the order of the rows."
        )


def _sorted_once(rows: Tensor, columns: Tensor, grades: Tensor, documents: int) -> Relevance:
    """Sorted by query and document; of a pair that comes several times the highest grade counts."""
    pairs, which = torch.unique(rows * documents + columns, return_inverse=True)
    highest = grades.new_zeros(len(pairs)).scatter_reduce_(0, which, grades, "amax")
    return Relevance(pairs // documents, pairs % documents, highest)
