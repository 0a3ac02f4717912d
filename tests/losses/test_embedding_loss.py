"""Losses on features: identity classification with label smoothing, and sums of losses of both kinds."""

import math

import pytest
import torch

from gssf_plug import GSSFMetric
from gssf_plug.errors import ArgumentError
from gssf_plug.losses import BatchHardTriplet, IdentityLoss, InfoNCE, WeightedSum, relevance_by_id
from gssf_plug.retrieval import OneTower


def batch():
    return torch.randn(12, 8), torch.arange(4).repeat_interleave(3)


def cosine(x, y):
    return torch.nn.functional.cosine_similarity(x[:, None], y[None], dim=-1)


@pytest.mark.parametrize("given", [torch.bfloat16, torch.float16, torch.float64])
def test_identity_loss_takes_features_in_another_dtype_than_its_weights(given):
    features, labels = batch()
    loss, features = IdentityLoss(8, 6), features.to(given).requires_grad_()
    torch.nn.init.normal_(loss.classifier.weight)
    common = torch.promote_types(given, torch.float32)
    value = loss(features, labels, cosine)
    assert value.dtype == common
    logits = features.to(common) @ loss.classifier.weight.to(common).T
    torch.testing.assert_close(value, torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1))
    value.backward()
    assert features.grad.dtype == given
    assert loss.classifier.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_identity_loss_follows_its_formula(smoothing):
    features, labels = batch()
    loss = IdentityLoss(8, 6, smoothing=smoothing)
    torch.nn.init.normal_(loss.classifier.weight)
    total = 0.0
    for row, label in zip(
        (features.double() @ loss.classifier.weight.double().T).tolist(), labels.tolist(), strict=True
    ):
        log_sum = math.log(sum(map(math.exp, row)))
        for identity, logit in enumerate(row):
            share = (1 - smoothing) * (identity == label) + smoothing / 6
            total -= share * (logit - log_sum)
    assert loss(features, labels, cosine).item() == pytest.approx(total / 12, rel=1e-5)


def test_weighted_sum_takes_losses_of_features_and_of_scores():
    features, labels = batch()
    identity, triplet = IdentityLoss(8, 4), BatchHardTriplet(margin=2.0)
    torch.nn.init.normal_(identity.classifier.weight)
    itself = torch.eye(12, dtype=torch.bool)
    apart = (
        identity(features, labels, cosine),
        triplet(cosine(features, features), relevance_by_id(labels, labels), forbidden=itself),
    )
    both = WeightedSum(identity, triplet, weights=(0.5, 2.0))
    torch.testing.assert_close(both(features, labels, cosine), 0.5 * apart[0] + 2.0 * apart[1])
    torch.testing.assert_close(WeightedSum(identity, triplet)(features, labels, cosine), apart[0] + apart[1])
    assert set(both.parameters()) == {identity.classifier.weight}


def test_gradients_reach_metric_encoder_and_classifier():
    features, labels = batch()
    model = OneTower(torch.nn.Linear(8, 8), GSSFMetric(8, block_size=4, constraint="symmetric"))
    loss = WeightedSum(IdentityLoss(8, 4), InfoNCE())
    encoded = model.encode(features)
    loss(encoded, labels, model.score).backward()
    for name, parameter in [*model.named_parameters(), *loss.named_parameters()]:
        assert parameter.grad is not None, name
        assert bool((parameter.grad != 0).any()), name


@pytest.mark.bad_input
class TestBadInput:
    def test_labels(self):
        with pytest.raises(
            ArgumentError, match="`labels` must lie in 0 … 3, one number per training identity, but got 4"
        ):
            IdentityLoss(8, 4)(torch.randn(2, 8), torch.tensor([0, 4]), cosine)

    def test_one_label_for_each_row(self):
        features = torch.randn(3, 8)
        for wrong in (torch.arange(2), torch.ones(3), torch.ones(3).bool(), [0, 1, 2]):
            with pytest.raises(ArgumentError, match=r"`labels` must hold one whole number per row of `features` \(3\)"):
                IdentityLoss(8, 4)(features, wrong, cosine)

    def test_a_score_takes_two_matrices(self):
        features, labels = batch()
        with pytest.raises(ArgumentError, match="`score` must be a function of 2 arguments"):
            WeightedSum(InfoNCE())(features, labels, len)

    def test_smoothing(self):
        with pytest.raises(ArgumentError, match="`smoothing` must be at least 0 and below 1, but got 1.0"):
            IdentityLoss(8, 4, smoothing=1.0)

    def test_weights(self):
        with pytest.raises(ArgumentError, match="`weights` must be as many as the losses.*2 losses and 1 weights"):
            WeightedSum(InfoNCE(), InfoNCE(), weights=(1.0,))
        with pytest.raises(ArgumentError, match="0 losses and no weights"):
            WeightedSum()
