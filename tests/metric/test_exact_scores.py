"""Canonical scores, the fast product, and the bound between them."""

import pytest
import torch
from metric.scored import DIM, FEATURES, OPTIONS, all_pairs, canonical, perturbed

from gssf_plug.metric.exact_scores import ExactScores


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", FEATURES)
def test_the_bound_holds(kind, options, dtype):
    metric, queries, gallery = perturbed(**OPTIONS[options]), FEATURES[kind](11), FEATURES[kind](40)
    part = ExactScores(metric, gallery, dtype=dtype).chunk(queries)
    fast, right = part.product(), canonical(metric, queries, gallery)
    assert torch.equal(part.canonical(*all_pairs(11, 40)).view(11, 40), right)
    assert fast.dtype == dtype
    for bounds in (part.around(right), part.around_items(right)):
        assert ((bounds.low <= fast) & (fast <= bounds.high)).all()
    for column in (0, 17):  # what is said to be above or below a value is so
        low, high = part.around(right[:, column : column + 1])
        assert (right > right[:, column : column + 1])[fast > high].all()
        assert (right < right[:, column : column + 1])[fast < low].all()


@pytest.mark.parametrize(("dtype", "most"), [(torch.bfloat16, 0.15), (torch.float32, 1e-3), (torch.float64, 1e-9)])
def test_the_bound_decides_most_pairs(dtype, most):
    metric, queries, gallery = perturbed(block_size=4), torch.randn(50, DIM), torch.randn(500, DIM)
    part = ExactScores(metric, gallery, dtype=dtype).chunk(queries)
    median = part.canonical(torch.arange(50), torch.arange(50))[:, None]
    low, high = part.around(median)
    fast = part.product()
    assert ((low <= fast) & (fast <= high)).double().mean() - 1 / 500 <= most
    assert torch.equal(ExactScores(metric, gallery, dtype=dtype).finer().chunk(queries).canonical(*all_pairs(2, 3)),
                       part.canonical(*all_pairs(2, 3)))  # fmt: skip
