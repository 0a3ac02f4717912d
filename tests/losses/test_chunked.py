"""A loss in strips equals the loss on all scores, value and gradient, and holds one strip at a time."""

import pytest
import torch
from torch import nn

from gssf_plug import GSSFMetric
from gssf_plug.losses import BatchHardTriplet, Hinge, InfoNCE, SemiHardTriplet, Sigmoid, chunked

LOSSES = {
    "InfoNCE": lambda: InfoNCE(scale=5.0),
    "hinge": lambda: Hinge(margin=0.5, learned_scale=True),
    "sum of hinges": lambda: Hinge(margin=0.5, warmup_steps=2),
    "batch hard": lambda: BatchHardTriplet(learned_scale=True),
    "soft margin": lambda: BatchHardTriplet(margin=None),
    "semi-hard": lambda: SemiHardTriplet(margin=0.9),
    "sigmoid": lambda: Sigmoid(learned=True),
}


def measured(loss, itself):
    torch.manual_seed(0)
    metric = GSSFMetric(8, block_size=4, constraint="symmetric").double()
    for parameter in metric.parameters():
        nn.init.normal_(parameter)
    queries = torch.randn(23, 8, dtype=torch.float64, requires_grad=True)
    gallery = queries if itself else torch.randn(31, 8, dtype=torch.float64, requires_grad=True)
    query_ids = torch.randint(9, (23,))
    gallery_ids = query_ids if itself else torch.randint(12, (31,))
    value = chunked.loss_of_pairs(loss, metric, queries, query_ids, gallery, gallery_ids, itself=itself)
    value.backward()
    leaves = [queries, gallery, *metric.parameters(), *loss.parameters()]
    return value.detach(), [leaf.grad for leaf in leaves]


@pytest.mark.parametrize("itself", [False, True])
@pytest.mark.parametrize("make", LOSSES.values(), ids=LOSSES)
def test_strips_equal_the_whole(make, itself, monkeypatch):
    whole, gradients = measured(make().double(), itself)
    monkeypatch.setattr(chunked, "WHOLE_SCORES", 100)
    monkeypatch.setattr(chunked, "STRIP_SCORES", 100)  # four rows, uneven at the end
    loss = make().double()
    value, again = measured(loss, itself)
    torch.testing.assert_close(value, whole)
    assert any(gradient.abs().max() > 1e-3 for gradient in gradients)
    for one, other in zip(again, gradients, strict=True):
        torch.testing.assert_close(one, other)
    if isinstance(loss, Hinge) and loss.warmup_steps:
        assert int(loss.calls) == 1  # once for a batch, not for a strip


def test_no_strip_is_larger_than_allowed(monkeypatch):
    seen = []

    class Watched(InfoNCE):
        def begin(self):
            terms = super().begin()

            def watched(pairs):
                seen.append(pairs.scores.numel())
                return terms(pairs)

            return watched

    monkeypatch.setattr(chunked, "WHOLE_SCORES", 23 * 31 - 1)
    monkeypatch.setattr(chunked, "STRIP_SCORES", 100)
    measured(Watched().double(), itself=False)
    assert max(seen) <= 100
    assert len(seen) == 2 * (8 + 8)  # strips of rows and of columns, and each once more for the gradient


def test_other_losses_see_all_scores(monkeypatch):
    monkeypatch.setattr(chunked, "WHOLE_SCORES", 1)

    class Spy(nn.Module):
        def forward(self, scores, relevance, *, forbidden=None):
            self.shape = scores.shape
            return scores.sum()

    spy = Spy()
    measured(spy, itself=False)
    assert spy.shape == (23, 31)
