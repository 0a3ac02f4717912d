"""Both ends of a ranking by one product: what two searches find, on every path, in every chunking."""

import pytest
import torch
from metric.scored import KINDS, NARROW, canonical, perturbed, sum_exactly

from gssf_plug import GSSFMetric
from gssf_plug.errors import ArgumentError
from gssf_plug.metric import farthest, topk
from gssf_plug.metric.exact import first_look
from gssf_plug.metric.farthest import nearest_and_farthest

ITEMS = 300


@pytest.fixture(params=["int8", "bfloat16", "float32"])
def path(request, monkeypatch):
    short = {name: (getattr(torch, name),) for name in ("int8", "bfloat16")}
    monkeypatch.setattr(farthest, "short_dtypes", lambda device: short.get(request.param, ()))
    for module, name, value in (
        (first_look, "FEW_SCORES", 0),
        (first_look, "MOST_OPEN", 1.0),
        (farthest, "MANY", 0),
        (farthest, "QUERIES_AT_ONCE", 64),
        (farthest, "DECIDED_AT_ONCE", 160),
        (farthest, "ITEMS_AT_ONCE", 128),
    ):
        monkeypatch.setattr(module, name, value)
    sum_exactly(monkeypatch)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("trained", [True, False])
def test_both_ends_are_those_of_two_searches(path, kind, normalize, trained, monkeypatch):
    if kind == "huge" and not normalize:
        return  # their product leaves float32
    metric = (perturbed if trained else GSSFMetric)(NARROW, block_size=4, normalize=normalize)
    features = KINDS[kind](ITEMS)
    scores = canonical(metric, features, features)
    best = scores.sort(dim=1, descending=True, stable=True).indices
    worst = (-scores).sort(dim=1, descending=True, stable=True).indices
    for k in (1, 21):
        found = nearest_and_farthest(metric, features, k)
        assert torch.equal(found.nearest, best[:, :k])
        assert torch.equal(found.farthest, worst[:, 0])
    monkeypatch.setattr(farthest, "MANY", 10**9)  # two searches
    again = nearest_and_farthest(metric, features, 21)
    assert torch.equal(again.nearest, found.nearest)
    assert torch.equal(again.farthest, found.farthest)


def test_one_product_serves_both(path, monkeypatch):
    monkeypatch.setattr(farthest, "topk", None)
    features = torch.randn(ITEMS, NARROW)
    nearest_and_farthest(GSSFMetric(NARROW), features, 5)
    with pytest.raises(TypeError):  # which masses of ties ask for
        nearest_and_farthest(GSSFMetric(NARROW), torch.ones(ITEMS, NARROW), 5)


def test_neighbours_that_stand_in_a_row_and_copies_of_some(path, monkeypatch):
    """Only queries with too many ties are searched for again."""
    features = torch.randn(15, NARROW).repeat_interleave(20, dim=0) + 0.1 * torch.randn(ITEMS, NARROW)
    features[50:120] = features[50]
    searched = []
    monkeypatch.setattr(farthest, "topk", lambda *given: searched.append(len(given[1])) or topk(*given))
    monkeypatch.setattr(farthest, "FEW_PAIRS", (48, 48))
    found = nearest_and_farthest(GSSFMetric(NARROW), features, 3)
    assert torch.equal(found.nearest, topk(None, features, features, 3).indices)
    assert torch.equal(found.farthest, topk(None, -features, features, 1).indices[:, 0])
    assert 70 <= searched[0] < ITEMS


def test_one_channel(path):
    features, metric = torch.rand(ITEMS, 1) + 0.1, GSSFMetric(1, terms=("diagonal",), normalize=False)
    found = nearest_and_farthest(metric, features, 3)
    assert torch.equal(found.nearest, topk(metric, features, features, 3).indices)
    assert torch.equal(found.farthest, topk(metric, -features, features, 1).indices[:, 0])


@pytest.mark.parametrize("items", [1, 2, 40])
def test_few_items(items):
    features, metric = torch.randn(items, NARROW), perturbed(NARROW)
    found = nearest_and_farthest(metric, features, items)
    assert torch.equal(found.nearest, topk(metric, features, features, items).indices)
    assert torch.equal(found.farthest, topk(metric, -features, features, 1).indices[:, 0])


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(path, broken):
    features = torch.randn(ITEMS, NARROW)
    features[200, 3] = broken
    with pytest.raises(ArgumentError, match="in row 200, channel 3"):
        nearest_and_farthest(GSSFMetric(NARROW), features, 5)


def test_a_product_that_overflows_is_refused(path):
    with pytest.raises(ArgumentError, match="finite scores"):
        nearest_and_farthest(GSSFMetric(NARROW, normalize=False), 1e200 * torch.randn(ITEMS, NARROW).double(), 5)
