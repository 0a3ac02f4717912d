"""The plan of a Distiller in print, and the parts of the proof that it works."""

import pytest
import torch
from distillation.models import TinyCNN
from torch import nn

from gssf_plug.distillation.plan import Plan, PlanRow, check_still, check_terms, untouched
from gssf_plug.distillation.taps import Feature
from gssf_plug.errors import ArgumentError


def row(**changes):
    given = {
        "student": "a", "teacher": "b", "student_shape": (6, 7, 16), "teacher_shape": (6, 7, 24), "loss": "MSE",
        "weight": 0.5, "projector": "Linear", "parameters": 1408, "name": "a", "student_tap": "a", "teacher_tap": "b",
    }  # fmt: skip
    return PlanRow(**{**given, **changes})


def test_a_plan_in_print():
    plan = Plan((row(), row(loss="Relation", weight=1.0, projector="none", parameters=8)), 12345)
    assert plan.parameters == 1416
    assert str(plan).splitlines() == [
        "student  teacher  shapes           loss      weight  projector  parameters",
        "a        b        6×7×16 ~ 6×7×24  MSE       0.5     Linear     1,408",
        "a        b        6×7×16 ~ 6×7×24  Relation  1       none       8",
        "student 12,345 parameters; beside it 1,416",
    ]


def test_a_module_is_as_before_even_after_an_error():
    model = TinyCNN().eval()
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    state = torch.get_rng_state()

    def run():
        with torch.no_grad(), untouched(model):
            assert model.training
            assert torch.is_grad_enabled()
            model(torch.randn(4, 3, 16, 16))
            assert not torch.equal(model.stages[0][1].running_mean, buffers["stages.0.1.running_mean"])
            raise KeyError

    with pytest.raises(KeyError):
        run()
    assert not model.training
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_teacher_that_moves_is_named_by_its_path():
    first, second = Feature(torch.ones(2, 3), None), Feature(torch.zeros(2, 3), None)
    check_still({"0": first}, {"0": first}, {"0": "layer.3"})
    with pytest.raises(ArgumentError, match="`teacher` must give the same features twice, but got two answers for 'l"):
        check_still({"0": first}, {"0": second}, {"0": "layer.3"})


def terms(student, x, y):
    out = student(x)
    return {"t": (out - y).square().sum()}, {"t": (Feature(out, None), Feature(y, None))}


def test_gradients_of_every_term_by_hand():
    student, x, y = nn.Linear(3, 2), torch.randn(4, 3), torch.randn(4, 2)
    losses, features = terms(student, x, y)
    (found,) = check_terms(losses, features, list(student.parameters())).rows
    error = 2 * (student(x) - y).detach()
    squares = (error.T @ x).square().sum() + error.sum(0).square().sum()
    assert found.gradient == pytest.approx(squares.sqrt().item(), rel=1e-5)
    assert found.loss == pytest.approx(losses["t"].item())
    assert found.scale_ratio == pytest.approx((y.norm(dim=1).mean() / student(x).norm(dim=1).mean()).item(), rel=1e-5)
    assert found.reached == 2
    assert "2 of 2" in str(check_terms(losses, features, list(student.parameters())))


@pytest.mark.parametrize("why", ["frozen", "detached", "equal", "infinite"])
def test_a_term_without_a_finite_gradient_is_named(why):
    student, x = nn.Linear(3, 2), torch.randn(4, 3)
    student.requires_grad_(why != "frozen")
    y = student(x).detach() if why == "equal" else torch.full((4, 2), 1e38 if why == "infinite" else 1.0)
    losses, features = terms(student, x, y)
    if why == "detached":
        losses = {"t": losses["t"].detach()}
    got = "inf" if why == "infinite" else "none"
    with pytest.raises(ArgumentError, match=f"`student` must get a finite gradient from 't', but got {got}"):
        check_terms(losses, features, list(student.parameters()))
