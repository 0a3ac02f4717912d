"""What a Distiller is given, checked: losses and weights, projector, two models apart, one forward of the student.

Which student feature meets which teacher feature: paths, globs, taps, or a rule over the stacked layers.

{"encoder.layer.1": "encoder.layer.5"}                 one pair
{"encoder.layer.{0,1}": "encoder.layer.{2,5}"}         two, in order
[("", Tap("encoder.layer.5", pooling=mean_pool))]      pairs as a list; "" is the model's own output
"last"                                                 last layer with last layer
"uniform"                                              layer i of n with layer ⌈(i + 1) m / n⌉ - 1 of m
"""

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from gssf_plug.arguments import checked_number
from gssf_plug.distillation.losses.distillation_loss import DistillationLoss
from gssf_plug.distillation.losses.short_names import LOSSES, Loss
from gssf_plug.distillation.module_paths import find_modules, layer_paths
from gssf_plug.distillation.taps import Tap
from gssf_plug.distillation.teacher import Teacher, TeacherInputs, TeacherModel
from gssf_plug.errors import ArgumentError, near_matches
from gssf_plug.wrappers import unwrap

__all__ = [
    "Pairs",
    "check_apart",
    "check_one_forward",
    "checked_projector",
    "checked_task_weight",
    "get_task_loss",
    "listed",
    "make_teacher",
    "resolve_pairs",
]

Side = str | Tap
Pairs = str | Mapping[str, Side] | Sequence[tuple[Side, Side]]
RULES = ("last", "uniform")


def resolve_pairs(
    student: nn.Module, pairs: Pairs, layers: Callable[[], list[str]], find: Callable[[str], list[str]]
) -> list[tuple[Tap, Tap]]:
    """Every pair as two taps, each on one module.

    Args:
        student: the student.
        pairs: the pairs as the caller gave them, see the text of the module.
        layers: paths of the teacher's stacked layers.
        find: function that gives the teacher's paths that match a pattern.

    Raises:
        ArgumentError: the rule is unknown, or the model has no stack of layers to apply it to; there is no pair; a path
            matches nothing; or a pattern matches different numbers of modules on the two sides.
    """
    if isinstance(pairs, str):
        return [(Tap(ours), Tap(theirs)) for ours, theirs in _by_rule(pairs, layer_paths(student), layers())]
    listed = list(pairs.items()) if isinstance(pairs, Mapping) else list(pairs) if isinstance(pairs, Sequence) else None
    if not listed:
        got = "none" if listed is not None else type(pairs).__name__
        raise ArgumentError("pairs", "name at least one pair", got, "Give {student path: teacher path}.")
    for pair in listed:
        if not isinstance(pair, tuple | list) or len(pair) != 2 or not all(isinstance(one, str | Tap) for one in pair):
            rule, remedy = "hold paths or taps of both sides", "Give {student path: teacher path}."
            raise ArgumentError("pairs", rule, repr(pair), remedy)
    resolved: list[tuple[Tap, Tap]] = []
    for ours, theirs in listed:
        left, right = (side if isinstance(side, Tap) else Tap(side) for side in (ours, theirs))
        left_paths = find_modules(student, left.path, argument="pairs (student)")
        right_paths = find(right.path)
        if len(left_paths) != len(right_paths):
            raise ArgumentError(
                "pairs",
                f"match as many modules on both sides, but {left.path!r} matches {len(left_paths)} of the student",
                f"{len(right_paths)} of the teacher for {right.path!r}",
                "Write the paths in full, or use braces: 'encoder.layer.{0,1}'.",
            )
        for a, b in zip(left_paths, right_paths, strict=True):
            resolved.append((replace(left, path=a), replace(right, path=b)))
    return resolved


def _by_rule(rule: str, ours: list[str], theirs: list[str]) -> list[tuple[str, str]]:
    if rule not in RULES:
        raise ArgumentError("pairs", f"be pairs of paths or one of {RULES}", repr(rule), near_matches(rule, RULES))
    for side, layers in (("student", ours), ("teacher", theirs)):
        if not layers:
            raise ArgumentError(
                "pairs", f"be given as paths, since the {side} has no stack of layers", repr(rule), "See suggest_taps."
            )
    if rule == "last":
        return [(ours[-1], theirs[-1])]
    # -(-a // b) is ⌈a / b⌉: the last layer meets the last
    return [(path, theirs[-(-(i + 1) * len(theirs) // len(ours)) - 1]) for i, path in enumerate(ours)]


def listed(loss: Loss | Sequence[Loss], weight: float | Sequence[float]) -> tuple[list[Loss], list[float]]:
    """Losses and their weights as lists of one length, names known."""
    losses: list[Loss] = list(loss) if isinstance(loss, list | tuple) else [loss]  # type: ignore[list-item]
    for one in losses:
        if isinstance(one, str) and one not in LOSSES:
            raise ArgumentError("loss", "be a loss object or a short name", repr(one), near_matches(one, LOSSES))
        if not isinstance(one, str | DistillationLoss):
            raise ArgumentError(
                "loss",
                "be a loss object of gssf_plug.distillation.losses or a short name",
                type(one).__name__,
                f"Names: {[*LOSSES]}; a loss of your own is a subclass of DistillationLoss.",
            )
    weights: list[float] = []  # of what is neither a number nor several: refused below
    if isinstance(weight, Real):
        weights = [weight] * len(losses)  # type: ignore[list-item]
    elif isinstance(weight, Sequence) and not isinstance(weight, str | bytes):
        weights = list(weight)
    rule, remedy = f"be a number of at least 0, or one for each of {len(losses)} losses", "Count them."
    if not losses or len(weights) != len(losses):
        raise ArgumentError("weight", rule, repr(weight), remedy)
    return losses, [checked_number("weight", one, rule, remedy, lambda number: number >= 0) for one in weights]


def checked_task_weight(student: nn.Module, student_inputs: object, task_weight: float) -> float:
    """The weight of the student's own loss; `student` and `student_inputs` are what they should be."""
    if not isinstance(student, nn.Module):
        raise ArgumentError("student", "be a torch.nn.Module", type(student).__name__, "Give the model itself.")
    if student_inputs is not None and not callable(student_inputs):
        rule, remedy = "be None or a function of the batch", "None takes the columns that its forward names."
        raise ArgumentError("student_inputs", rule, type(student_inputs).__name__, remedy)
    rule, remedy = "be a number of at least 0", "0 leaves the student's own loss out."
    return checked_number("task_weight", task_weight, rule, remedy, lambda number: number >= 0)


def checked_projector(projector: str | nn.Module | None, pairs: int) -> str | nn.Module | None:
    """A module that serves one pair, None, or "auto"; nothing else."""
    automatic = isinstance(projector, str) and projector == "auto"
    if projector is not None and not automatic and not isinstance(projector, nn.Module):
        raise ArgumentError("projector", "be 'auto', None or a module", repr(projector), "Use 'auto'.")
    if isinstance(projector, nn.Module) and pairs > 1:
        raise ArgumentError(
            "projector", "be a module for a single pair only", f"one module for {pairs} pairs", "Use 'auto'."
        )
    return projector


def make_teacher(
    student: nn.Module,
    teacher: nn.Module | Teacher,
    inputs: TeacherInputs,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> Teacher:
    """A model as a `TeacherModel`; of one that was made already a view, so that several distillers may share it."""
    if not isinstance(teacher, nn.Module) and not all(hasattr(teacher, name) for name in ("layers", "find", "watch")):
        rule, remedy = "be a module, a TeacherModel or a TeacherCache", "Give the model itself."
        raise ArgumentError("teacher", rule, type(teacher).__name__, remedy)
    if isinstance(teacher, nn.Module):
        teacher = TeacherModel(teacher, inputs=inputs, dtype=dtype, device=device)
    elif inputs is not None or dtype is not None or device is not None:
        raise ArgumentError(
            "teacher_inputs, teacher_dtype, teacher_device",
            "be given with a plain model only",
            f"a {type(teacher).__name__}",
            "Give them to TeacherModel; a cache was made with its own.",
        )
    if isinstance(teacher, TeacherModel):
        check_apart(student, teacher.model)
    # One that reads for another distiller is copied: the same model or files, but taps of its own.
    return copy(teacher) if getattr(teacher, "watching", False) else teacher


def check_apart(student: nn.Module, teacher: nn.Module) -> None:
    """No parameter of the teacher lies in the student."""
    places = lambda p: {id(p), p.data_ptr()} - {0}  # noqa: E731 - a parameter on the meta device, or sharded, lies at 0
    theirs = {place for p in teacher.parameters() for place in places(p)}
    shared = [name for name, p in unwrap(student).named_parameters() if places(p) & theirs]
    if shared:
        raise ArgumentError(
            "teacher",
            "share no weights with the student",
            f"'{shared[0]}' in both ({len(shared)} shared)",
            "Use copy.deepcopy(student) as the teacher, or load it a second time.",
        )


def check_one_forward(count: int) -> None:
    """The student ran once, or its features are not those of the batch."""
    if count != 1:
        raise ArgumentError(
            "run",
            "run the student once a step, or the teacher's features meet those of another forward",
            f"{count} forwards",
            "Give the Distiller student_inputs, so that features are read in a forward of their own, or task_weight=0.",
        )


def get_task_loss(outputs: Any) -> Tensor:
    """The student's own loss in its outputs: "loss" of a mapping, or what comes first in a tuple."""
    if isinstance(outputs, Mapping):
        found = outputs.get("loss")
    else:
        found = outputs[0] if isinstance(outputs, tuple | list) and outputs else None
    if not isinstance(found, Tensor) or found.numel() != 1:
        raise ArgumentError(
            "task_weight",
            "be 0 where the student returns no loss",
            "outputs without 'loss'",
            "Add labels to the batch.",
        )
    return found
