"""The k best of candidates, near ties decided: against a stable sort of canonical scores."""

import pytest
import torch
from metric.scored import KINDS, NARROW, all_pairs, canonical, perturbed

from gssf_plug.metric.exact import decisions
from gssf_plug.metric.exact.canonical import canonical_queries
from gssf_plug.metric.exact.decisions import best_of_all, best_of_candidates


def reference(scores, k, dtype):
    """Each row by falling score, then rising index; padded."""
    values, order = scores.sort(dim=1, descending=True, stable=True)
    missing = (0, max(0, k - scores.shape[1]))
    order = torch.nn.functional.pad(order.masked_fill(values == float("-inf"), -1), missing, value=-1)
    return torch.nn.functional.pad(values, missing, value=float("-inf"))[:, :k].to(dtype), order[:, :k]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["random", "near duplicates", "all equal", "some subnormal", "some zero rows"])
@pytest.mark.parametrize("at_once", [16, 10**6])
def test_the_order_is_the_canonical_one(kind, dtype, at_once, monkeypatch):
    monkeypatch.setattr(decisions, "ENTRIES_AT_ONCE", at_once * NARROW)
    monkeypatch.setattr(decisions, "SCORES_AT_ONCE", at_once)
    metric, features, gallery = perturbed(NARROW, block_size=4), KINDS[kind](5), KINDS[kind](40)
    queries, right = canonical_queries(metric, features), canonical(metric, features, gallery)
    for k in (1, 7, 40, 45):
        scores, indices = reference(right, k, dtype)
        found = best_of_candidates(queries, gallery, *all_pairs(5, 40), k, dtype)
        assert torch.equal(found[1], indices)
        assert torch.equal(found[0], scores)
        if k > 40:
            continue
        slack = torch.full((5,), 1e-13)
        off = right + 1e-13 * (2 * torch.rand(right.shape, dtype=torch.float64) - 1)
        found = best_of_all(queries, gallery, off, slack.double(), k, dtype)
        assert torch.equal(found[1], indices)
        assert torch.equal(found[0], scores)


def test_pairs_that_are_taken_out_and_queries_with_too_few():
    features, gallery = torch.randn(3, NARROW), torch.randn(6, NARROW)
    right = canonical(None, features, gallery)
    hidden = torch.rand(3, 6) < 0.5
    hidden[1] = True
    rows, columns = (~hidden).nonzero(as_tuple=True)
    right = right.masked_fill(hidden, float("-inf"))
    scores, indices = reference(right, 4, torch.float32)
    queries = canonical_queries(None, features)
    for found in (
        best_of_candidates(queries, gallery, rows, columns, 4, torch.float32),
        best_of_all(queries, gallery, right.clone(), torch.full((3,), 1e-14, dtype=torch.float64), 4, torch.float32),
    ):
        assert torch.equal(found[0], scores)
        assert torch.equal(found[1], indices)
    assert indices[1].tolist() == [-1] * 4
