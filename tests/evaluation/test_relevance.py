"""Which documents answer which query: every form that people keep it in says the same; nonsense is named."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.sparse
import torch
from datasets import Dataset

from gssf_plug.errors import ArgumentError
from gssf_plug.evaluation.relevance import read_relevance

QUERIES, DOCUMENTS = 6, 9


def corpus(most=1):
    """Grades 0 … most; one query has no document."""
    grades = torch.randint(1, most + 1, (QUERIES, DOCUMENTS)) * (torch.rand(QUERIES, DOCUMENTS) < 0.4)
    grades[2] = 0
    return grades


def as_lists(grades):
    return [row.nonzero()[:, 0].tolist() for row in grades]


def read(relevant, queries=QUERIES, documents=DOCUMENTS):
    return [part.tolist() for part in read_relevance("relevant", relevant, queries, documents)]


PAIRS = {
    "pairs": lambda grades: (grades > 0).nonzero(),
    "pairs, shuffled and twice": lambda grades: (grades > 0).nonzero().repeat(2, 1)[torch.randperm(2 * grades.sum())],
    "numpy pairs": lambda grades: (grades > 0).nonzero().numpy().astype(np.int32),
    "tuples": lambda grades: [tuple(pair) for pair in grades.nonzero().tolist()],
    "tuples of numpy": lambda grades: tuple(map(tuple, grades.nonzero().numpy())),
    "boolean": lambda grades: grades > 0,
    "boolean numpy": lambda grades: (grades > 0).numpy(),
    "sparse torch": lambda grades: (grades > 0).to_sparse(),
    "sparse rows": lambda grades: grades.double().to_sparse_csr(),
    "scipy matrix": lambda grades: scipy.sparse.csr_matrix(grades.numpy()),
    "scipy array": lambda grades: scipy.sparse.coo_array(grades.bool().numpy()),
    "lists": as_lists,
    "tensors": lambda grades: [torch.tensor(own) if own else () for own in as_lists(grades)],
    "sets": lambda grades: list(map(set, as_lists(grades))),
    "mappings": lambda grades: [dict.fromkeys(own, 1.0) for own in as_lists(grades)],
    "column": lambda grades: Dataset.from_dict({"answers": as_lists(grades)})["answers"],
    "torch column": lambda grades: Dataset.from_dict({"answers": as_lists(grades)}).with_format("torch")["answers"],
    "arrow column": lambda grades: Dataset.from_dict({"answers": as_lists(grades)}).with_format("arrow")["answers"],
    "series": lambda grades: pd.Series(as_lists(grades)),
    "frame": lambda grades: pd.DataFrame(grades.bool().numpy()),
}
GRADED = {
    "whole": lambda grades: grades,
    "numpy": lambda grades: grades.numpy(),
    "half": lambda grades: grades.half(),
    "scipy": lambda grades: scipy.sparse.csc_matrix(grades.numpy()),
    "sparse torch": lambda grades: grades.to_sparse(),
    "mappings": lambda grades: [{place: float(row[place]) for place in row.nonzero()[:, 0].tolist()} for row in grades],
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("form", PAIRS)
def test_every_form_of_pairs_says_the_same(form):
    grades = corpus()
    rows, columns = grades.nonzero(as_tuple=True)
    assert read(PAIRS[form](grades)) == [rows.tolist(), columns.tolist(), [1.0] * len(rows)]


@pytest.mark.parametrize("form", GRADED)
def test_every_form_of_grades_says_the_same(form):
    grades = corpus(most=4)
    rows, columns = grades.nonzero(as_tuple=True)
    assert read(GRADED[form](grades)) == [rows.tolist(), columns.tolist(), grades[rows, columns].tolist()]


def test_two_columns_of_whole_numbers_are_pairs():
    assert read(torch.tensor([[0, 1], [1, 0]]), 2, 2)[:2] == [[0, 1], [1, 0]]
    assert read(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), 2, 2)[:2] == [[0, 1], [1, 0]]
    assert read(torch.tensor([[1, 1], [1, 1]]), 2, 2)[:2] == [[1], [1]]
    assert read(torch.tensor([[1.0, 1.0], [1.0, 1.0]]), 2, 2)[:2] == [[0, 0, 1, 1], [0, 1, 0, 1]]


def test_tuples_are_pairs_and_lists_are_documents_also_where_there_are_two_of_each():
    assert read([(1, 1), (1, 0)], 2, 2)[:2] == [[1, 1], [0, 1]]
    assert read([[1, 1], [1, 0]], 2, 2)[:2] == [[0, 1, 1], [1, 0, 1]]


def test_columns_of_lists_of_two_are_documents_too():
    for column in (pd.Series([[1, 1], [1, 0]]), pd.Series([[1, 1], [1, 0]]).to_numpy(), pa.array([[1, 1], [1, 0]])):
        assert read(column, 2, 2)[:2] == [[0, 1, 1], [1, 0, 1]]


def test_of_a_pair_that_comes_twice_the_highest_grade_counts():
    matrix = scipy.sparse.coo_array(([1.0, 3.0, 2.0], ([0, 0, 1], [4, 4, 0])), shape=(QUERIES, DOCUMENTS))
    assert read(matrix) == [[0, 1], [4, 0], [3.0, 2.0]]


def test_what_is_not_above_zero_is_not_relevant():
    assert read([{0: 0.0, 1: -2.0, 2: 0.5}] + [[]] * 5) == [[0], [2], [0.5]]


def test_some_consecutive_queries():
    relevance = read_relevance("relevant", [[1], [], [0, 2], [4], [], [3]], QUERIES, DOCUMENTS)
    part = relevance.of(slice(1, 4))
    assert [one.tolist() for one in part] == [[1, 1, 2], [0, 2, 4], [1.0] * 3]
    assert relevance.of(slice(4, 5)).rows.tolist() == []


@pytest.mark.bad_input
class TestBadInput:
    def refuses(self, match, relevant):
        with pytest.raises(ArgumentError, match=match):
            read_relevance("relevant", relevant, 3, 5)

    def test_forms(self):
        self.refuses("`relevant` must say which documents answer which query, but got dict", {0: [1]})
        self.refuses("must say which documents answer which query, but got str", "0 1")
        self.refuses(r"2 entries for 3 queries\. Give index pairs", [[0], [1]])
        self.refuses("must hold one list of documents per query, but got 4 for query 1", [[0], 4, [1]])
        self.refuses("name documents by their row, a whole number, but got 'a' for query 2", [[0], [1], ["a"]])
        self.refuses(r"3 queries × 5 documents, .* but got shape \(5, 3\)", torch.ones(5, 3))
        self.refuses(r"3 queries × 5 documents, .* but got shape \(4, 2\)", torch.ones(4, 2))
        self.refuses(r"but got shape \(5, 3\)", scipy.sparse.csr_matrix(np.ones((5, 3))))
        self.refuses("must hold real grades, but got torch.complex64", torch.ones(3, 5, dtype=torch.complex64))

    @pytest.mark.parametrize("number", [4, np.int64(4), np.array(4), torch.tensor(4), pa.scalar(4)])
    def test_a_number_is_no_list(self, number):
        self.refuses("must hold one list of documents per query, but got .*4.* for query 1", [[0], number, [1]])

    def test_columns_of_single_numbers(self):
        table = Dataset.from_dict({"answer": [0, 4, 1]})
        for form in (None, "numpy", "torch"):
            self.refuses("must hold one list of documents per query", table.with_format(form)["answer"])
        for column in (
            pd.Series([0, 4, 1]),
            torch.tensor([0, 4, 1]),
            np.array([0, 4, 1]),
            pa.chunked_array([[0, 4, 1]]),
        ):
            self.refuses(r"must be a matrix of 3 queries × 5 documents, .* but got shape \(3,\)", column)

    @pytest.mark.parametrize(
        "own",
        [
            [[1, 2], [3]],
            [[1, 2]],
            np.eye(2, dtype=int),
            torch.eye(2).long(),
            torch.ones(1, dtype=torch.long, device="meta"),
            [None],
            [2**70],
            (n for n in (1, 2)),
        ],
    )
    def test_what_names_no_document(self, own):
        self.refuses("must name documents by their row, a whole number, but got .* for query 1", [[0], own, [1]])

    def test_numbers_outside(self):
        self.refuses("`relevant` must name rows of `documents`, 0 … 4, but got 5 in pair 1", [[0], [5], []])
        self.refuses("must name rows of `queries`, 0 … 2, but got 3 in pair 0", torch.tensor([[3, 0]]))
        self.refuses("must name rows of `documents`, 0 … 4, but got -1", np.array([[0, -1]]))

    def test_grades(self):
        grades = torch.zeros(3, 5)
        grades[1, 2] = float("nan")
        self.refuses("must hold finite grades, but got nan for query 1 and document 2", grades)
        for grade in (None, "good", 1j, [1], 10**400):
            self.refuses("must hold finite grades, but got .* for query 1 and document 2", [{}, {2: grade}, {}])
