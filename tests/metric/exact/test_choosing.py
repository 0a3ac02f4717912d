"""The k best of rows of float64 scores that are off within a bound: against a stable sort of canonical scores."""

import pytest
import torch
from metric.scored import KINDS, NARROW, canonical, perturbed, ranked

from gssf_plug.metric.exact import choosing, falling
from gssf_plug.metric.exact.canonical import canonical_queries
from gssf_plug.metric.exact.choosing import RowsOfScores, choose_best

QUERIES, ITEMS = 6, 90


@pytest.fixture(params=["short keys", "long keys", "torch"])
def way(request, monkeypatch, two_threads):
    """How rows are sorted; in several blocks, on two threads."""
    monkeypatch.setattr(falling, "CACHED", 2 * ITEMS)
    monkeypatch.setattr(falling, "SORTED_AT_ONCE", ITEMS)
    monkeypatch.setattr(choosing, "FEW", ITEMS)
    if request.param == "long keys":
        monkeypatch.setattr(falling, "MOST_SHORT_BITS", 0)
    if request.param == "torch":
        monkeypatch.setattr(choosing, "MOST_BITS", 0)


def chosen(given, k, dtype):
    result = torch.full((len(given.scores), k), float("nan"), dtype=dtype), torch.full((len(given.scores), k), -7)
    choose_best(given, result)
    return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_the_order_is_the_canonical_one(way, kind, dtype):
    metric, features, gallery = perturbed(NARROW, block_size=4), KINDS[kind](QUERIES), KINDS[kind](ITEMS)
    queries, right = canonical_queries(metric, features), canonical(metric, features, gallery)
    hidden = torch.rand(QUERIES, ITEMS) < torch.tensor([0.0, 0.2, 0.9, 1.0, 0.0, 0.5])[:, None]
    for slack in (1e-13, 1e-7):
        off = right + slack * (2 * torch.rand(right.shape, dtype=torch.float64) - 1)
        bound = torch.full((QUERIES,), slack, dtype=torch.float64)
        for k in (1, 7, ITEMS, ITEMS + 5):
            for some in (hidden, hidden & False):
                given = RowsOfScores(queries, gallery, off.masked_fill(some, float("-inf")), None, bound)
                scores, indices = ranked(right.masked_fill(some, float("-inf")), k, dtype)
                found = chosen(given, k, dtype)
                assert torch.equal(found[1], indices)
                assert torch.equal(found[0], scores)


def test_items_may_be_some_of_the_gallery(way):
    features, gallery = KINDS["duplicates"](QUERIES), KINDS["duplicates"](ITEMS)
    right = canonical(None, features, gallery)
    indices = torch.stack([torch.randperm(ITEMS)[:30].sort().values for _ in range(QUERIES)])
    bound = torch.full((QUERIES,), 1e-13, dtype=torch.float64)
    given = RowsOfScores(canonical_queries(None, features), gallery, right.gather(1, indices), indices, bound)
    scores, order = ranked(right.gather(1, indices), 12, torch.float32)
    found = chosen(given, 12, torch.float32)
    assert torch.equal(found[1], indices.gather(1, order))
    assert torch.equal(found[0], scores)


def test_scores_that_are_farther_apart_than_their_bound_are_taken_as_they_are(way, monkeypatch):
    """Nothing canonical is asked for, neither for places nor for ties."""
    monkeypatch.setattr(choosing, "canonical_scores", None)
    scores = torch.arange(1, QUERIES * ITEMS + 1).view(QUERIES, ITEMS).flip(1)[:, torch.randperm(ITEMS)] / 4096
    queries = canonical_queries(None, torch.randn(QUERIES, NARROW))
    bound = torch.full((QUERIES,), 2.0**-50, dtype=torch.float64)
    given = RowsOfScores(queries, torch.randn(ITEMS, NARROW), scores.double(), None, bound)
    found = chosen(given, ITEMS, torch.float32)
    assert torch.equal(found[0], scores.sort(dim=1, descending=True).values)
