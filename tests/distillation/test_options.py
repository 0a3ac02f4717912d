"""What a Distiller is given: pairs by path, glob, brace and rule; losses and weights; two models apart."""

import copy

import pytest
import torch
from torch import nn

from gssf_plug.distillation import Tap, TeacherModel
from gssf_plug.distillation.losses import MSE
from gssf_plug.distillation.module_paths import find_modules, layer_paths
from gssf_plug.distillation.options import (
    check_apart,
    check_one_forward,
    checked_projector,
    checked_task_weight,
    get_task_loss,
    listed,
    make_teacher,
    resolve_pairs,
)
from gssf_plug.errors import ArgumentError

pytestmark = pytest.mark.bad_input


def stack(layers, width=2):
    return nn.ModuleDict({"layers": nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)))})


def resolve(pairs, student=3, teacher=7):
    ours, theirs = stack(student), stack(teacher)
    found = resolve_pairs(
        ours, pairs, lambda: layer_paths(theirs), lambda path: find_modules(theirs, path, argument="pairs (teacher)")
    )
    return [(a.path.removeprefix("layers."), b.path.removeprefix("layers.")) for a, b in found]


def refuses(match, call, *given):
    with pytest.raises(ArgumentError, match=match):
        call(*given)


@pytest.mark.parametrize(
    ("pairs", "resolved"),
    [
        ({"layers.1": "layers.5"}, [("1", "5")]),
        ([("layers.1", "layers.5"), ["layers.1", "layers.4"]], [("1", "5"), ("1", "4")]),
        ({"layers.{0,1}": "layers.{6,2}"}, [("0", "6"), ("1", "2")]),
        ({"layers.*": "layers.{0,3,6}"}, [("0", "0"), ("1", "3"), ("2", "6")]),
        ({"": "layers.0"}, [("", "0")]),
        ("last", [("2", "6")]),
        ("uniform", [("0", "2"), ("1", "4"), ("2", "6")]),  # ⌈7/3⌉, ⌈14/3⌉, 7, counted from 0
    ],
)
def test_pairs_in_every_form(pairs, resolved):
    assert resolve(pairs) == resolved


def test_uniform_meets_the_last_layer_whatever_the_depths():
    for ours in range(2, 6):
        for theirs in range(2, 9):
            places = [int(place) for _, place in resolve("uniform", ours, theirs)]
            assert places == sorted(places)
            assert places[-1] == theirs - 1


def test_taps_keep_what_they_read():
    taps = [(Tap("layers.{0,1}", token=0), Tap("layers.*"))]
    found = resolve_pairs(stack(2), taps, list, lambda path: ["a", "b"])
    assert [(a.path, a.token, b.path) for a, b in found] == [("layers.0", 0, "a"), ("layers.1", 0, "b")]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ({"layers.9": "layers.3"}, r"`pairs \(student\)` must be the path of a module"),
        ({"layers.1": "layers.9"}, r"`pairs \(teacher\)` must be the path of a module"),
        ({"layers.1": "layers.*"}, "matches 1 of the student, but got 7 of the teacher for 'layers.*'"),
        ({}, "`pairs` must name at least one pair, but got none"),
        (3, "`pairs` must name at least one pair, but got int"),
        ([("layers.1",)], "`pairs` must hold paths or taps of both sides"),
        ([("layers.1", 5)], "`pairs` must hold paths or taps of both sides"),
        ("unifrm", "`pairs` must be pairs of paths or one of .* Did you mean 'uniform'"),
    ],
)
def test_pairs_that_are_none(pairs, message):
    refuses(message, resolve, pairs)


def test_a_rule_needs_layers_on_both_sides():
    flat = nn.Linear(2, 2)
    refuses("since the student has no stack of layers", resolve_pairs, flat, "last", lambda: ["a"], list)
    refuses("since the teacher has no stack of layers", resolve_pairs, stack(2), "last", list, list)


def test_losses_and_weights_are_as_many():
    mse = MSE()
    assert listed("gssf", 2) == (["gssf"], [2.0])
    assert listed(["gssf", mse], 0.5) == (["gssf", mse], [0.5, 0.5])
    assert listed(("gssf", mse), (1, 0)) == (["gssf", mse], [1.0, 0.0])
    refuses("but got 'gsf'. Did you mean 'gssf'", listed, "gsf", 1)
    for wrong in (nn.MSELoss(), [nn.MSELoss()], nn.functional.mse_loss, nn.MSELoss, None):
        refuses("`loss` must be a loss object of gssf_plug.distillation.losses or a short name", listed, wrong, 1)
    for wrong in (float("nan"), -1.0, float("inf"), "1", [1.0, 2.0], [True], None, []):
        refuses("`weight` must be a number of at least 0, or one for each of 1 losses", listed, "mse", wrong)
    refuses("one for each of 0 losses", listed, [], 1)


def test_the_student_and_its_own_loss():
    student = nn.Linear(2, 2)
    assert checked_task_weight(student, None, 1) == 1.0
    assert checked_task_weight(student, dict, 0) == 0.0
    refuses("`student` must be a torch.nn.Module, but got str", checked_task_weight, "bert", None, 0)
    refuses("`student_inputs` must be None or a function of the batch", checked_task_weight, student, 3, 0)
    refuses("`task_weight` must be a number of at least 0, but got -1", checked_task_weight, student, None, -1)
    loss = torch.tensor(2.0)
    assert get_task_loss({"loss": loss, "logits": torch.ones(2)}) is loss
    assert get_task_loss((loss, torch.ones(2))) is loss
    for wrong in ({"logits": loss}, (torch.ones(2),), (), None, loss):
        refuses("`task_weight` must be 0 where the student returns no loss", get_task_loss, wrong)


def test_projectors():
    mine = nn.Linear(2, 2)
    for right in ("auto", None, mine):
        assert checked_projector(right, 1) is right
    refuses("`projector` must be a module for a single pair only, but got one module for 2", checked_projector, mine, 2)
    refuses("`projector` must be 'auto', None or a module, but got 'linear'", checked_projector, "linear", 1)


def test_two_models_share_nothing():
    student = stack(2)
    check_apart(student, copy.deepcopy(student))
    tied, view = stack(2), stack(2)
    tied["layers"][1] = student["layers"][1]
    view["layers"][0].weight = nn.Parameter(student["layers"][0].weight.data)  # another parameter, the same memory
    refuses(r"share no weights with the student, but got 'layers.0.weight' in both \(4 shared", check_apart, student,
            student)  # fmt: skip
    refuses(r"but got 'layers.1.weight' in both \(2 shared", check_apart, student, tied)
    refuses(r"but got 'layers.0.weight' in both \(1 shared", check_apart, student, view)
    with torch.device("meta"):
        check_apart(stack(2), stack(2))  # no memory, so none is shared


def test_a_model_becomes_a_teacher_and_one_that_is_read_is_copied():
    student, model = stack(2), stack(3)
    teacher = make_teacher(student, model, None, torch.bfloat16, None)
    assert isinstance(teacher, TeacherModel)
    assert {p.dtype for p in teacher.model.parameters()} == {torch.bfloat16}
    assert make_teacher(student, teacher, None, None, None) is teacher
    teacher.watch({"0": Tap("layers.0")})
    other = make_teacher(student, teacher, None, None, None)
    assert other is not teacher
    assert other.model is teacher.model
    refuses("must be given with a plain model only, but got a TeacherModel", make_teacher, student, teacher, None,
            torch.float16, None)  # fmt: skip
    refuses("`teacher` must be a module, a TeacherModel or a TeacherCache", make_teacher, student, "bert", None, None,
            None)  # fmt: skip


def test_one_forward():
    check_one_forward(1)
    for count in (0, 2):
        refuses(f"`run` must run the student once a step, .* but got {count} forwards", check_one_forward, count)
