"""The k best of candidates, near ties decided: against a stable sort of canonical scores."""

import pytest
import torch
from metric.scored import KINDS, NARROW, all_pairs, canonical, perturbed, ranked

from gssf_plug.metric.exact import decisions, falling
from gssf_plug.metric.exact.canonical import canonical_queries
from gssf_plug.metric.exact.decisions import best_of_candidates


def best(queries, gallery, rows, columns, k, dtype):
    count = len(queries.folded)
    result = torch.full((count, k), float("nan"), dtype=dtype), torch.full((count, k), -7)
    best_of_candidates(queries, gallery, rows, columns, result)
    return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["random", "near duplicates", "all equal", "some subnormal", "some zero rows"])
@pytest.mark.parametrize("at_once", [16, 10**6])
def test_the_order_is_the_canonical_one(kind, dtype, at_once, monkeypatch):
    monkeypatch.setattr(decisions, "ENTRIES_AT_ONCE", at_once * NARROW)
    monkeypatch.setattr(falling, "CACHED", at_once)
    metric, features, gallery = perturbed(NARROW, block_size=4), KINDS[kind](5), KINDS[kind](40)
    queries, right = canonical_queries(metric, features), canonical(metric, features, gallery)
    for k in (1, 7, 40, 45):
        found, wanted = best(queries, gallery, *all_pairs(5, 40), k, dtype), ranked(right, k, dtype)
        assert torch.equal(found[1], wanted[1])
        assert torch.equal(found[0], wanted[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("normalize", [True, False])
def test_threads_score_queries_of_their_own(dtype, normalize, monkeypatch, two_threads):
    monkeypatch.setattr(decisions, "ENTRIES_AT_ONCE", 7 * NARROW)  # one query, or several that have few candidates
    monkeypatch.setattr(decisions, "MANY_ENTRIES", 0)
    metric, features = perturbed(NARROW, block_size=4, normalize=normalize), torch.randn(50, NARROW)
    gallery = (torch.randn(40, NARROW) * 10.0 ** torch.randint(-3, 4, (40, 1))).to(dtype)
    hidden = torch.rand(50, 40) < torch.rand(50, 1)
    rows, columns = (~hidden).nonzero(as_tuple=True)
    right = ranked(canonical(metric, features, gallery).masked_fill(hidden, float("-inf")), 5, dtype)
    found = best(canonical_queries(metric, features), gallery, rows, columns, 5, dtype)
    assert torch.equal(found[0], right[0])
    assert torch.equal(found[1], right[1])


def test_queries_with_too_few_and_with_none():
    features, gallery = torch.randn(3, NARROW), torch.randn(6, NARROW)
    hidden = torch.rand(3, 6) < 0.5
    hidden[1] = True
    right = canonical(None, features, gallery).masked_fill(hidden, float("-inf"))
    rows, columns = (~hidden).nonzero(as_tuple=True)
    found, wanted = (
        best(canonical_queries(None, features), gallery, rows, columns, 4, torch.float32),
        ranked(right, 4, torch.float32),
    )
    assert torch.equal(found[0], wanted[0])
    assert torch.equal(found[1], wanted[1])
    assert found[1][1].tolist() == [-1] * 4
