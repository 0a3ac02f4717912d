"""Who gets which rate and which decay; the rates as a function of the step."""

import pytest
import torch
from retrieval import toy
from torch import nn

from gssf_plug.errors import ArgumentError
from gssf_plug.losses import Hinge
from gssf_plug.retrieval import LocalAlignment, Tower, TwoTower
from gssf_plug.retrieval.training.objective import Objective
from gssf_plug.retrieval.training.optimizer import build_optimizer, rate_factor, set_rates


def names_by_group(objective, optimizer):
    names = {id(parameter): name for name, parameter in objective.named_parameters()}
    return {
        (group["name"], group["lr"], group["weight_decay"]): sorted(names[id(p)] for p in group["params"])
        for group in optimizer.param_groups
    }


def test_groups(tmp_path):
    image = Tower(nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6)), projection=nn.Linear(6, 8))
    model = TwoTower(image, None, toy.model().metric)
    objective = Objective(model, Hinge(learned_scale=True))
    config = toy.recipe(
        tmp_path, learning_rate=1e-3, metric_learning_rate=2e-3, encoder_learning_rate=1e-4, weight_decay=0.1
    )
    assert names_by_group(objective, build_optimizer(objective, config)) == {
        ("encoders", 1e-4, 0.1): ["model.image_tower.encoder.0.weight"],
        ("encoders", 1e-4, 0.0): [
            "model.image_tower.encoder.0.bias",
            "model.image_tower.encoder.1.bias",
            "model.image_tower.encoder.1.weight",
        ],
        ("rest", 1e-3, 0.1): ["model.image_tower.projection.weight"],
        ("rest", 1e-3, 0.0): ["loss.scale.log_scale", "model.image_tower.projection.bias"],
        ("metric", 2e-3, 0.0): [
            "model.metric.structures.block_diagonal.weight",
            "model.metric.structures.diagonal.weight",
        ],
    }


def test_frozen_parameters_stay_out_and_nothing_to_train_is_named(tmp_path):
    objective = Objective(toy.model().requires_grad_(False), Hinge())
    with pytest.raises(ArgumentError, match="`model` must have a parameter that requires a gradient"):
        build_optimizer(objective, toy.recipe(tmp_path))
    objective.model.metric.requires_grad_(True)
    assert {group["name"] for group in build_optimizer(objective, toy.recipe(tmp_path)).param_groups} == {"metric"}


def test_the_loss_may_have_its_own_rate(tmp_path):
    objective = Objective(TwoTower(nn.Linear(4, 8), None, toy.model().metric), Hinge(learned_scale=True))
    config = toy.recipe(tmp_path, learning_rate=1e-3, loss_learning_rate=0.1, weight_decay=0.1)
    assert names_by_group(objective, build_optimizer(objective, config))["loss", 0.1, 0.0] == ["loss.scale.log_scale"]


def test_each_side_may_have_its_own_rate_and_encoders_may_wait(tmp_path):
    model = TwoTower(Tower(nn.Linear(4, 6), projection=nn.Linear(6, 8)), nn.Linear(5, 8), toy.model().metric)
    objective = Objective(model, Hinge())
    config = toy.recipe(tmp_path, learning_rate=1e-3, encoder_learning_rate=1e-4, image_encoder_learning_rate=1e-5)
    optimizer = build_optimizer(objective, config)
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert rates == {"image_encoder": 1e-5, "encoders": 1e-4, "rest": 1e-3, "metric": 1e-2}
    set_rates(optimizer, 0.5, frozen=True)
    frozen = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert frozen == {"image_encoder": 0, "encoders": 0, "rest": 5e-4, "metric": 5e-3}
    both = toy.recipe(tmp_path, image_encoder_learning_rate=1e-5, text_encoder_learning_rate=1e-6)
    named = {group["name"]: group["lr"] for group in build_optimizer(objective, both).param_groups}
    assert named == {"image_encoder": 1e-5, "text_encoder": 1e-6, "rest": 1e-2, "metric": 1e-2}


def test_every_metric_of_a_model_has_the_metrics_rate(tmp_path):
    metrics = toy.model().metric, toy.model().metric
    objective = Objective(LocalAlignment(None, None, metric=metrics[0], attention_metric=metrics[1]), Hinge())
    groups = names_by_group(objective, build_optimizer(objective, toy.recipe(tmp_path, metric_learning_rate=0.5)))
    assert len(groups.pop(("metric", 0.5, 0.0))) == 4
    assert not groups


def test_frozen_encoders_do_not_move_in_their_epochs(tmp_path):
    trainer = toy.trainer(tmp_path, changes={"frozen_encoder_epochs": 1, "epochs": 2}, model=toy.model(dropout=0.0))
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    moved = []
    record = trainer._record
    trainer._record = lambda: (
        record()
        or moved.append(
            {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
        )
    )
    trainer.train()
    assert moved[2]
    assert not any("encoder" in name for name in moved[2])
    assert any("encoder" in name for name in moved[-1])


@pytest.mark.parametrize("schedule", ["cosine", "linear", "step", "constant"])
def test_rates_rise_and_follow_the_schedule(schedule, tmp_path):
    config = toy.recipe(tmp_path, warmup=0.1, schedule=schedule)
    factors = [rate_factor(step, 100, config) for step in range(100)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    after = {"cosine": (0.5, 3e-4), "linear": (0.5, 0.0111), "step": (1.0, 0.1), "constant": (1.0, 1.0)}[schedule]
    assert factors[10] == 1
    assert (factors[55], factors[99]) == pytest.approx(after, abs=2e-4)
    assert all(early >= late for early, late in zip(factors[10:], factors[11:], strict=False))
    assert rate_factor(0, 1, toy.recipe(tmp_path, warmup=0.0, schedule=schedule)) == 1


def test_rates_fall_in_several_steps(tmp_path):
    config = toy.recipe(tmp_path, warmup=0.0, schedule="step", decay_at=(0.25, 0.5), decay_factor=0.5)
    assert [rate_factor(step, 8, config) for step in range(8)] == [1, 1, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25]


def test_set_rates():
    optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.ones(1))], "lr": 0.5, "peak": 0.5}])
    set_rates(optimizer, 0.1)
    set_rates(optimizer, 0.5)
    assert optimizer.param_groups[0]["lr"] == 0.25
