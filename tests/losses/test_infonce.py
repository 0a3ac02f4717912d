"""InfoNCE: the contract of losses, its scale, CLIP as a special case."""

import math

import pytest
import torch
from contracts.loss import LossContract
from torch.nn.functional import cross_entropy

from gssf_plug.errors import ArgumentError
from gssf_plug.losses import InfoNCE


class TestInfoNCE(LossContract):
    def make(self):
        return InfoNCE(scale=5.0)

    def reference(self, scores, relevance, forbidden):
        def one_direction(scores, relevance, forbidden):
            per_query = []
            for row, relevant, hidden in zip(scores, relevance, forbidden, strict=True):
                exponentials = [math.exp(5.0 * s) for s, h in zip(row, hidden, strict=True) if not h]
                positives = [s for s, r, h in zip(row, relevant, hidden, strict=True) if r and not h]
                terms = [-math.log(math.exp(5.0 * s) / sum(exponentials)) for s in positives]
                if terms:
                    per_query.append(sum(terms) / len(terms))
            return sum(per_query) / max(len(per_query), 1)

        transposed = [list(zip(*matrix, strict=True)) for matrix in (scores, relevance, forbidden)]
        return (one_direction(scores, relevance, forbidden) + one_direction(*transposed)) / 2


def test_is_the_loss_of_clip_with_one_positive_each():
    scores, targets = torch.randn(6, 6), torch.arange(6)
    clip = (cross_entropy(scores / 0.07, targets) + cross_entropy(scores.T / 0.07, targets)) / 2
    torch.testing.assert_close(InfoNCE()(scores, torch.eye(6, dtype=torch.bool)).detach(), clip)


def test_scale_is_learned_and_stays_in_its_range():
    loss = InfoNCE(scale=9.0, scale_range=(1.0, 10.0))
    easy, relevance = torch.eye(4), torch.eye(4, dtype=torch.bool)
    optimizer = torch.optim.SGD(loss.parameters(), lr=100.0)
    for scores, bound in ((easy, 10.0), (-easy, 1.0), (easy, 10.0)):  # comes back from either bound
        for _ in range(20):
            optimizer.zero_grad()
            loss(scores, relevance).backward()
            optimizer.step()
        assert loss.scale.factor().item() == pytest.approx(bound)


def test_scale_can_be_kept():
    assert not any(parameter.requires_grad for parameter in InfoNCE(learned_scale=False).parameters())


@pytest.mark.bad_input
def test_scale_outside_its_range():
    with pytest.raises(ArgumentError, match=r"`scale` must lie in a range .* but got 500 in \[1.0, 100.0\]"):
        InfoNCE(scale=500)
