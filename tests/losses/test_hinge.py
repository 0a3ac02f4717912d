"""Hinge: the contract of losses in both of its phases, VSE++ as a special case, the warm-up."""

import pytest
import torch
from contracts.loss import LossContract

from gssf_plug.errors import ArgumentError
from gssf_plug.losses import Hinge


def hinge_by_loops(scores, relevance, forbidden, *, hardest, margin=0.2):
    rows, columns = range(len(scores)), range(len(scores[0]))
    total, positives = 0.0, 0
    for i in rows:
        for p in columns:
            if not relevance[i][p] or forbidden[i][p]:
                continue
            positives += 1
            of_row = [scores[i][j] for j in columns if not relevance[i][j] and not forbidden[i][j]]
            of_column = [scores[k][p] for k in rows if not relevance[k][p] and not forbidden[k][p]]
            for negatives in (of_row, of_column):
                hinges = [max(0.0, margin - scores[i][p] + s) for s in negatives] or [0.0]
                total += max(hinges) if hardest else sum(hinges)
    return total / max(positives, 1)


class TestHardest(LossContract):
    def make(self):
        return Hinge()

    def reference(self, scores, relevance, forbidden):
        return hinge_by_loops(scores, relevance, forbidden, hardest=True)


class _AlwaysWarm(Hinge):
    """The warm-up's formula in evaluation mode too, so that the contract can look at it."""

    def _warming_up(self):
        return True


class TestWarmUp(LossContract):
    def make(self):
        return _AlwaysWarm()

    def reference(self, scores, relevance, forbidden):
        return hinge_by_loops(scores, relevance, forbidden, hardest=False)


class TestLearnedScale(LossContract):
    def make(self):
        loss = Hinge(learned_scale=True)
        with torch.no_grad():
            loss.scale.log_scale.fill_(0.5)
        return loss

    def reference(self, scores, relevance, forbidden):
        factor = torch.tensor(0.5).double().exp().item()
        scaled = [[factor * score for score in row] for row in scores]
        return hinge_by_loops(scaled, relevance, forbidden, hardest=True)


def test_is_the_sum_of_vsepp_with_one_positive_each():
    scores = torch.rand(6, 6)
    diagonal = scores.diag()[:, None]
    cost_s = (0.2 + scores - diagonal).clamp(min=0).fill_diagonal_(0).max(1)[0]
    cost_im = (0.2 + scores - diagonal.T).clamp(min=0).fill_diagonal_(0).max(0)[0]
    vsepp = cost_s.sum() + cost_im.sum()
    torch.testing.assert_close(6 * Hinge()(scores, torch.eye(6, dtype=torch.bool)), vsepp)


def test_warm_up_counts_training_calls_and_is_saved():
    scores, relevance = torch.rand(5, 5), torch.eye(5, dtype=torch.bool)
    hardest, summed = Hinge()(scores, relevance), _AlwaysWarm()(scores, relevance)
    assert summed > hardest
    loss = Hinge(warmup_steps=3)
    assert loss.eval()(scores, relevance) == hardest
    loss.train()
    assert [loss(scores, relevance).item() for _ in range(2)] == [summed.item()] * 2
    resumed = Hinge(warmup_steps=3)
    resumed.load_state_dict(loss.state_dict())
    assert resumed(scores, relevance) == summed
    assert resumed(scores, relevance) == hardest


def test_scale_gets_a_gradient():
    loss = Hinge(learned_scale=True)
    loss(torch.rand(5, 5), torch.eye(5, dtype=torch.bool)).backward()
    assert loss.scale.log_scale.grad.abs() > 0


@pytest.mark.bad_input
def test_bad_arguments_are_named():
    with pytest.raises(ArgumentError, match="`margin` must be a positive number, but got 0"):
        Hinge(margin=0)
    for wrong in (-1, float("nan"), 2.5, float("inf")):
        with pytest.raises(ArgumentError, match=f"`warmup_steps` must be at least 0 and whole, but got {wrong}"):
            Hinge(warmup_steps=wrong)
