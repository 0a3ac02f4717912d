"""Who is measured on: a share of the queries, folds of few, groups of one list; what a batch knows of itself."""

import pytest
import torch
from retrieval.fitting.noisy_channels import noisy_channels

from gssf_plug.retrieval.fitting import splits
from gssf_plug.retrieval.fitting.splits import read_part, split_queries

NAMES = ("queries", "documents", "pairs", "ignored")


def test_a_share_of_many_queries_is_held_once() -> None:
    part = read_part(NAMES, noisy_channels(1000), None, None)
    ((train, held),) = split_queries(part, 0.2, 0)
    assert len(held.rows) == 200
    assert sorted([*train.rows.tolist(), *held.rows.tolist()]) == list(range(1000))
    ((_, other),) = split_queries(part, 0.2, 1)
    assert set(other.rows.tolist()) != set(held.rows.tolist())


@pytest.mark.parametrize("queries", [2, 7, 60, 301])
def test_few_queries_are_each_held_once(queries: int) -> None:
    part = read_part(NAMES, noisy_channels(queries), None, None)
    folds = split_queries(part, 0.2, 0)
    assert len(folds) > 1
    assert sorted(row for _, held in folds for row in held.rows.tolist()) == list(range(queries))
    for train, held in folds:
        assert len(train.rows) + len(held.rows) == queries
        assert len(train.rows) > 0


def test_linked_items_of_one_list_stay_together() -> None:
    items = torch.randn(300, 8)
    same = torch.arange(300)[:, None] // 3 == torch.arange(300) // 3
    part = read_part(NAMES, (items, items, same), None, None)
    assert part.itself
    assert bool((part.pairs.rows != part.pairs.items).all())
    for train, held in split_queries(part, 0.2, 0):
        assert not {row // 3 for row in train.rows.tolist()} & {row // 3 for row in held.rows.tolist()}


def test_one_group_of_everything_is_split_by_query() -> None:
    items = torch.randn(100, 8)
    chain = torch.stack([torch.arange(99), torch.arange(1, 100)], dim=1)
    folds = split_queries(read_part(NAMES, (items, items, chain), None, None), 0.2, 0)
    assert sum(len(held.rows) for _, held in folds) == 99


def test_a_large_corpus_cuts_the_share() -> None:
    queries, documents, pairs = noisy_channels(6000, 1_500_000, 1)
    ((_, held),) = split_queries(read_part(NAMES, (queries, documents, pairs), None, None), 0.5, 0)
    assert len(held.rows) == splits.SCORES_OF_VALIDATION // 1_500_000


def test_masks_of_one_list_leave_out_the_item_itself() -> None:
    items = torch.randn(12, 4)
    pairs = torch.tensor([[0, 1], [1, 0], [2, 3]])
    part = read_part(NAMES, (items, items, pairs, torch.tensor([[0, 5]])), None, None)
    table = torch.full((12,), -1)
    known, ignored = part.known(torch.tensor([0, 2]), torch.tensor([0, 1, 3, 5]), table).masks(torch.Size([2, 4]))
    assert known.tolist() == [[False, True, False, False], [False, False, True, False]]
    assert ignored is not None
    assert ignored.tolist() == [[True, False, False, True], [False, False, False, False]]
    assert bool((table == -1).all())
