"""The short names: each makes its loss for the widths that were seen."""

import pytest
import torch

from gssf_plug.distillation import losses
from gssf_plug.distillation.losses.short_names import LOSSES, loss_by_name, make_metric
from gssf_plug.errors import ArgumentError

CLASSES = {
    "gssf": "Relation", "mse": "MSE", "cosine": "Cosine", "at": "AttentionTransfer", "sp": "SP", "rkd": "RKD",
    "pkt": "PKT", "crd": "CRD", "vid": "VID", "cka": "CKA", "mgd": "MGD",
}  # fmt: skip


def test_every_name_has_its_class():
    assert CLASSES.keys() == LOSSES.keys()


@pytest.mark.parametrize("name", CLASSES)
def test_a_name_makes_a_fresh_loss_for_these_widths(name):
    loss = loss_by_name(name, 6, 10)
    assert type(loss) is getattr(losses, CLASSES[name])
    assert loss is not loss_by_name(name, 6, 10)
    student, teacher = torch.randn(4, 3, 10 if loss.same_width else 6), torch.randn(4, 3, 10)
    assert loss(student, teacher).isfinite()


def test_the_default_objective():
    loss = loss_by_name("gssf", 12, 10)
    assert loss.metric.constraint == "psd"
    assert loss.metric.terms == ("diagonal", "block_diagonal")
    assert {dim: make_metric(dim).block_size for dim in (1, 12, 14, 17, 30, 64)} == {
        1: 1, 12: 12, 14: 14, 17: 1, 30: 15, 64: 16
    }  # fmt: skip


def test_an_unknown_name_is_named():
    with pytest.raises(ArgumentError, match="`loss` must be a loss object or a short name, but got 'gsf'. Did you"):
        loss_by_name("gsf", 4, 4)
