"""What may still be among the k best while the gallery passes by: nobody who is, is dropped; few others are kept."""

import pytest
import torch
from metric.scored import KINDS, NARROW, canonical, perturbed, sum_exactly

from gssf_plug.metric.exact import candidates as module
from gssf_plug.metric.exact import first_look
from gssf_plug.metric.exact.candidates import Candidates, pad_pairs
from gssf_plug.metric.exact.canonical import canonical_queries, canonical_scores
from gssf_plug.metric.exact.fast_rows import given_rows
from gssf_plug.metric.exact.fast_scores import fast_queries
from gssf_plug.metric.exact.first_look import FirstLook, Part


def passed_by(metric, queries, gallery, k, size, dtypes, hidden=None):
    sides = canonical_queries(metric, queries)
    close = fast_queries(sides, torch.float32)
    found = Candidates(close, k, FirstLook(sides, close, dtypes))
    for start in range(0, len(gallery), size):
        part = slice(start, start + size)
        items = given_rows(gallery[part], metric is None or metric.normalize)
        found.add(Part.of(items), start, None if hidden is None else hidden[:, part])
    return found


@pytest.mark.parametrize(("size", "few"), [(200, False), (37, True)])
@pytest.mark.parametrize("dtypes", [(torch.int8,), (torch.bfloat16,), ()])
@pytest.mark.parametrize("kind", ["random", "signs", "near duplicates", "subnormal", "some zero rows", "rising"])
def test_the_best_are_always_among_them(kind, dtypes, size, few, monkeypatch):
    if few:  # groups, and a threshold that rises with each part, on features as few as these
        monkeypatch.setattr(first_look, "FEW_SCORES", 0)
        monkeypatch.setattr(first_look, "MOST_OPEN", 1.0)
        monkeypatch.setattr(module, "FEW_PAIRS", 0)
    sum_exactly(monkeypatch)
    metric, queries, gallery = perturbed(NARROW, block_size=4), KINDS[kind](5), KINDS[kind](200)
    hidden = torch.rand(5, 200) < 0.1
    right = canonical(metric, queries, gallery).masked_fill(hidden, float("-inf"))
    found = passed_by(metric, queries, gallery, 9, size, dtypes, hidden)
    before = len(found)
    found.prune()
    assert len(found) <= before
    kept = set(zip(found.pairs.rows.tolist(), found.pairs.columns.tolist(), strict=True))
    order = right.sort(dim=1, descending=True, stable=True).indices[:, :9]
    assert kept >= {(row, column) for row, own in enumerate(order.tolist()) for column in own}
    assert not any(hidden[row, column] for row, column in kept)
    scores = right[found.pairs.rows, found.pairs.columns]
    assert ((found.pairs.low <= scores) & (scores <= found.pairs.high)).all()
    assert found.pairs.rows.tolist() == sorted(found.pairs.rows.tolist())
    found.settle(canonical_scores(canonical_queries(metric, queries), found.pairs.rows, gallery, found.pairs.columns))
    assert len(found) == 5 * 9
    assert found.pairs.columns.view(5, 9).tolist() == order.sort(dim=1).values.tolist()
    assert torch.equal(found.pairs.low, right[found.pairs.rows, found.pairs.columns])


def test_most_of_a_random_gallery_is_dropped_at_once():
    found = passed_by(None, torch.randn(20, NARROW), torch.randn(3000, NARROW), 10, 1000, (torch.bfloat16,))
    found.prune()
    assert 20 * 10 <= len(found) < 3 * 20 * 10


def test_fewer_items_than_are_asked_for_all_stay():
    found = passed_by(None, torch.randn(2, NARROW), torch.randn(4, NARROW), 9, 2, ())
    found.prune()
    assert found.pairs.columns.tolist() == [0, 1, 2, 3] * 2


def test_pairs_become_rows_of_a_matrix():
    rows = torch.tensor([0, 0, 2, 2, 2])
    numbers, values = pad_pairs(4, rows, torch.arange(5), torch.arange(5.0))
    assert numbers.tolist() == [[0, 1, -1], [-1] * 3, [2, 3, 4], [-1] * 3]
    away = float("-inf")
    assert values.tolist() == [[0, 1, away], [away] * 3, [2, 3, 4], [away] * 3]
    assert pad_pairs(3, rows[:0], torch.arange(0))[0].shape == (3, 0)
