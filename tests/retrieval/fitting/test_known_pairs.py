"""Which documents belong to which query: selected, taken away, found among others, as a matrix says it."""

import pytest
import torch

from gssf_plug.errors import ArgumentError
from gssf_plug.retrieval.fitting.known_pairs import KnownPairs, read_pairs


def test_a_batch_knows_all_its_pairs() -> None:
    known = torch.rand(30, 40, generator=torch.Generator().manual_seed(0)) < 0.2
    pairs = read_pairs("pairs", known, 30, 40)
    rows, items = torch.tensor([3, 17, 29]), torch.tensor([0, 5, 6, 39])
    table = torch.full((40,), -1)
    table[items] = torch.arange(4)
    among = pairs.among(rows, table)
    assert torch.equal(torch.stack(among), torch.stack(known[rows][:, items].nonzero(as_tuple=True)))
    places, found = pairs.select(rows)
    assert [found[places == place].tolist() for place in range(3)] == [
        known[row].nonzero()[:, 0].tolist() for row in rows
    ]


def matrix(pairs: KnownPairs) -> torch.Tensor:
    known = torch.zeros(pairs.queries, pairs.documents, dtype=torch.bool)
    known[pairs.rows, pairs.items] = True
    return known


def test_they_are_kept_row_by_row() -> None:
    known = torch.rand(20, 30) < 0.1
    known[4] = False
    pairs = read_pairs("pairs", known, 20, 30)
    assert len(pairs) == int(known.sum())
    assert torch.equal(matrix(pairs), known)
    assert torch.equal(pairs.counts, known.sum(1))
    for row in range(20):
        own = pairs.items[pairs.offsets[row] : pairs.offsets[row + 1]]
        assert own.tolist() == known[row].nonzero()[:, 0].tolist()


def test_a_query_may_be_asked_for_twice_and_out_of_order() -> None:
    pairs = read_pairs("pairs", [[2, 0], [], [1]], 3, 4)
    places, items = pairs.select(torch.tensor([2, 0, 1, 2]))
    assert (places.tolist(), items.tolist()) == ([0, 1, 1, 3], [1, 0, 2, 1])
    empty = pairs.select(torch.tensor([1]))
    assert [part.tolist() for part in empty] == [[], []]


def test_some_are_taken_away() -> None:
    first, second = (torch.rand(12, 12) < 0.4 for _ in range(2))
    pairs = read_pairs("pairs", first, 12, 12)
    assert torch.equal(matrix(pairs.without(read_pairs("pairs", second, 12, 12))), first & ~second)
    assert torch.equal(matrix(pairs.without_itself()), first & ~torch.eye(12).bool())
    assert torch.equal(matrix(pairs.kept(pairs.items > 5)), first & (torch.arange(12) > 5))


def test_a_pair_outside_its_side_is_named() -> None:
    with pytest.raises(ArgumentError, match="`ignored` must name rows of `documents`, 0 … 3, but got 4"):
        read_pairs("ignored", [[4], [], []], 3, 4)
