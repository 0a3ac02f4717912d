"""What a run is made of, and in what two of them differ."""

import json

import pytest
import torch
from torch import nn

from gssf_plug import GSSFMetric
from gssf_plug.errors import ArgumentError
from gssf_plug.losses import Hinge
from gssf_plug.retrieval.training.recipe import check_recipe, describe_module, differences


def named(old, new):
    return [name for name, _, _ in differences(old, new, "model")]


@pytest.mark.parametrize(
    ("one", "other", "name"),
    [
        (nn.Dropout(0.1), nn.Dropout(0.2), "model.p"),
        (nn.Linear(2, 3), nn.Linear(2, 4), "model.out_features"),
        (Hinge(margin=0.2), Hinge(margin=0.3), "model.margin"),
        (GSSFMetric(8, block_size=4), GSSFMetric(8, block_size=4, constraint="symmetric"), "model.constraint"),
        (GSSFMetric(8, block_size=4), GSSFMetric(8, block_size=2), "model.block_size"),
        (nn.Sequential(nn.ReLU()), nn.Sequential(nn.GELU()), "model.0.class"),
        (nn.TransformerEncoderLayer(4, 2, activation="relu"), nn.TransformerEncoderLayer(4, 2, activation="gelu"),
         "model.activation"),
    ],
)  # fmt: skip
def test_settings_that_differ_are_named(one, other, name):
    old, new = describe_module(one), describe_module(other)
    assert name in named(old, new)
    assert named(json.loads(json.dumps(old)), describe_module(one)) == []


def test_training_does_not_change_what_a_module_is():
    module = Hinge(warmup_steps=3, learned_scale=True)
    before = describe_module(module)
    module.train()(torch.randn(4, 4), torch.eye(4, dtype=torch.bool)).backward()
    assert describe_module(module.eval()) == before


def test_counts_of_the_last_batch_are_no_setting():
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    loss = losses.TripletMarginLoss(0.3)
    before = describe_module(loss)
    loss(torch.randn(8, 4), torch.arange(8) // 2)
    loss.reducer.last_batch = 7  # as its reducers and miners note what they met
    assert describe_module(loss) == before
    assert named(before, describe_module(losses.TripletMarginLoss(0.4))) == ["model.margin"]


def test_an_entry_that_an_earlier_version_did_not_write_is_no_difference(tmp_path):
    check_recipe({"seed": 1}, {"seed": 1, "patience": None}, tmp_path)
    check_recipe({"share": float("nan")}, {"share": float("nan")}, tmp_path)


def test_many_differences_are_counted(tmp_path):
    old, new = {"a": {str(n): n for n in range(50)}}, {"a": {str(n): -n for n in range(50)}}
    with pytest.raises(ArgumentError, match="and 29 more"):
        check_recipe(old, new, tmp_path)
