"""Search with bfloat16 screening is exact: against float64 scores, in galleries made to deceive it."""

import pytest
import torch
from torch.nn.functional import normalize

from gssf_plug import GSSFMetric
from gssf_plug.metric import bf16_search, search, topk

QUERIES = bf16_search.FEWEST_QUERIES + 3


@pytest.fixture(autouse=True)
def _screen_everywhere(monkeypatch):
    monkeypatch.setattr(search, "can_screen", lambda folded: len(folded) >= bf16_search.FEWEST_QUERIES)


def perturbed(dim=16):
    metric = GSSFMetric(dim, block_size=4)
    with torch.no_grad():
        for parameter in metric.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return metric


def galleries(count=600, dim=16):
    near = torch.randn(1, dim) + 1e-3 * torch.randn(count, dim)  # bfloat16 cannot tell them apart
    rising = torch.randn(1, dim) + torch.linspace(3, 0, count)[:, None] * torch.randn(count, dim)
    return {
        "random": torch.randn(count, dim),
        "float16": torch.randn(count, dim).half(),
        "near": near,
        "some near": torch.cat([torch.randn(count - 40, dim), near[:40]]),
        "rising": rising,
        "long rows": torch.randn(count, dim) * 1e4,
    }


@pytest.mark.parametrize("name", galleries())
@pytest.mark.parametrize("gallery_chunk", [37, 250, 600])
def test_equals_float64(name, gallery_chunk):
    metric, gallery, queries = perturbed(), galleries()[name], torch.randn(QUERIES, 16)
    precise = metric.double()(queries.double(), gallery.double()).detach()
    metric.float()
    forbidden = torch.rand(QUERIES, 600) < 0.1
    for k in (1, 7, 40):
        for mask in (None, forbidden):
            found = topk(metric, queries, gallery, k, gallery_chunk=gallery_chunk, forbidden=mask)
            right = precise if mask is None else precise.masked_fill(mask, float("-inf"))
            torch.testing.assert_close(found.scores.double(), right.topk(k).values, atol=2e-6, rtol=0)
            torch.testing.assert_close(right.gather(1, found.indices), found.scores.double(), atol=2e-6, rtol=0)
            assert all(len(set(row)) == k for row in found.indices.tolist())


def test_equal_items_come_in_order_of_index():
    gallery = torch.randn(20, 16).repeat(12, 1)
    found = topk(perturbed(), torch.randn(QUERIES, 16), gallery, 12, gallery_chunk=50)
    assert torch.equal(found.scores[:, :1].expand(-1, 12), found.scores)
    assert torch.equal(found.indices, found.indices[:, :1] + 20 * torch.arange(12))


def test_fewer_allowed_than_asked_for():
    forbidden = torch.ones(QUERIES, 60, dtype=torch.bool)
    forbidden[:, [50, 3]] = False
    found = topk(perturbed(), torch.randn(QUERIES, 16), torch.randn(60, 16), 4, gallery_chunk=13, forbidden=forbidden)
    assert {frozenset(row) for row in found.indices[:, :2].tolist()} == {frozenset({3, 50})}
    assert (found.indices[:, 2:] == -1).all()
    assert (found.scores[:, 2:] == float("-inf")).all()


def test_the_bound_holds_and_most_pairs_are_decided():
    torch.manual_seed(0)
    folded, items = torch.randn(QUERIES, 512) * 3, normalize(torch.randn(4000, 512))
    rough = (folded.bfloat16() @ items.bfloat16().T).double()
    margin = torch.linalg.vector_norm(folded, dim=1) * (3.2 * 2**-9 + 512 * 2**-22)
    error = (rough - folded.double() @ items.double().T).abs()
    assert (error <= margin[:, None]).all()
    assert error.max() > margin.max() / 20
    scored = []

    def items_of(which):
        scored.extend([] if isinstance(which, slice) else which.tolist())
        return items[which]

    found = bf16_search.screened(folded, items_of, [slice(0, 1000), slice(1000, 4000)], 10, lambda part: None)
    assert len(scored) < 8 * 10 * QUERIES
    torch.testing.assert_close(found[0], (folded @ items.T).topk(10).values)


def test_an_undecided_gallery_is_scored_in_float32(monkeypatch):
    left = []
    undecided = bf16_search._undecided
    monkeypatch.setattr(bf16_search, "_undecided", lambda *a: left.append(undecided(*a)) or left[-1])
    gallery = torch.ones(600, 16) + 1e-4 * torch.randn(600, 16)
    found = topk(None, torch.randn(QUERIES, 16), gallery, 2, gallery_chunk=300)
    assert left == [None]
    assert found.scores.isfinite().all()


def test_a_metric_that_does_not_normalise_is_not_screened(monkeypatch):
    monkeypatch.setattr(search, "screened", None)
    metric = GSSFMetric(16, normalize=False)
    assert topk(metric, torch.randn(QUERIES, 16), torch.randn(50, 16), 3).scores.shape == (QUERIES, 3)
