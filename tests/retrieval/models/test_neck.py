"""The neck: one loss before it, one behind; its parameters are the model's."""

import pytest
import torch
from retrieval import frameworks
from torch import nn

from gssf_plug.errors import ArgumentError
from gssf_plug.losses import BatchHardTriplet, IdentityLoss, WeightedSum
from gssf_plug.retrieval import NeckLoss
from gssf_plug.retrieval.models.neck import check_neck, negative_distance


def test_the_neck_stands_between_the_losses():
    model = frameworks.bot()
    features, labels = torch.randn(8, 12), torch.arange(8) % 4
    loss = NeckLoss(model.neck, before=BatchHardTriplet(margin=0.3), after=IdentityLoss(12, 4))
    value = loss(features, labels, model.score)
    distances = torch.cdist(features, features)
    same = labels[:, None] == labels
    hardest = [(0.3 + distances[i][same[i]].max() - distances[i][~same[i]].min()).relu() for i in range(len(features))]
    necked = (features - features.mean(0)) / (features.var(0, unbiased=False) + 1e-5).sqrt()
    expected = torch.stack(hardest).mean() + loss.after(necked * model.neck.weight, labels, model.score)
    torch.testing.assert_close(value, expected, atol=1e-5, rtol=1e-5)
    assert not [name for name in loss.state_dict() if "neck" in name]
    model.train()
    images = torch.randn(3, 3, 32, 16)
    before = model.encode(images)
    torch.testing.assert_close(model.eval().encode(images), model.neck(model.tower.eval()(images)))
    assert not torch.allclose(before, model.encode(images))


def test_distances_of_all_pairs_with_a_gradient_at_zero():
    a, b = torch.randn(4, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    torch.testing.assert_close(negative_distance(a, b), -torch.cdist(a, b))
    same = a.clone().requires_grad_()
    negative_distance(same, same).diagonal().sum().backward()
    assert same.grad.eq(0).all()


def test_it_is_called_in_training_mode_where_features_come_before_the_neck():
    model = frameworks.bot()
    loss = NeckLoss(model.neck, after=IdentityLoss(12, 4))
    with pytest.raises(ArgumentError, match="`loss` must be called in training mode"):
        loss.eval()(torch.randn(4, 12), torch.arange(4), model.score)


def test_a_models_neck_is_applied_by_its_loss():
    model, other = frameworks.bot(), nn.BatchNorm1d(12)
    right = NeckLoss(model.neck, after=IdentityLoss(12, 4))
    for fits in (right, WeightedSum(right, BatchHardTriplet())):
        check_neck(model, fits)
    check_neck(nn.Linear(2, 2), IdentityLoss(12, 4))  # a model without a neck
    for wrong in (IdentityLoss(12, 4), NeckLoss(other, after=IdentityLoss(12, 4))):
        with pytest.raises(ArgumentError, match=f"`loss` must apply the model's neck, but got {type(wrong).__name__}"):
            check_neck(model, wrong)
