"""What a Distiller will do (`Plan`) and the proof that it works (`Check`): two tables to print.

The proof, in parts: a module that is used and left as it was; a teacher that gives the same features twice; gradients
of every term on the student.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gssf_plug.distillation.shape_matching import as_vector
from gssf_plug.distillation.taps import Feature
from gssf_plug.errors import ArgumentError

__all__ = ["Check", "CheckRow", "Plan", "PlanRow", "check_still", "check_terms", "untouched"]


@dataclass(frozen=True)
class PlanRow:
    """One term of the loss.

    Args:
        student: path of the student's module; "" is the whole model.
        teacher: path of the teacher's module; "" is the whole model.
        student_shape: shape of the student's feature, before any projector.
        teacher_shape: shape of the teacher's feature.
        loss: class of the loss.
        weight: factor of the loss in the sum.
        projector: class of the projector on the student's side, "the same" where another term made it, or "none".
        parameters: number of parameters that this term trains beside the student.
        name: the term's key among the losses.
        student_tap: the student's tap in short, with the part of the output and the pooling.
        teacher_tap: the teacher's tap in short, likewise.
    """

    student: str
    teacher: str
    student_shape: tuple[int, ...]
    teacher_shape: tuple[int, ...]
    loss: str
    weight: float
    projector: str
    parameters: int
    name: str = ""
    student_tap: str = ""
    teacher_tap: str = ""


@dataclass(frozen=True)
class Plan:
    """Pairs, shapes, losses, projectors and their parameters."""

    rows: tuple[PlanRow, ...]
    student_parameters: int

    @property
    def parameters(self) -> int:
        """Trained beside the student: projectors, metrics, scales."""
        return sum(row.parameters for row in self.rows)

    def __str__(self) -> str:
        head = ("student", "teacher", "shapes", "loss", "weight", "projector", "parameters")
        rows = [
            (
                row.student_tap,
                row.teacher_tap,
                f"{_shape(row.student_shape)} ~ {_shape(row.teacher_shape)}",
                row.loss,
                f"{row.weight:g}",
                row.projector,
                f"{row.parameters:,}",
            )
            for row in self.rows
        ]
        total = f"student {self.student_parameters:,} parameters; beside it {self.parameters:,}"
        return _table(head, rows) + "\n" + total


@dataclass(frozen=True)
class CheckRow:
    """One term: its value, the norm of its gradient on the student, and how much longer teacher features are."""

    name: str
    loss: float
    gradient: float
    scale_ratio: float
    reached: int


@dataclass(frozen=True)
class Check:
    """What `Distiller.check` found; it raises where something is wrong."""

    rows: tuple[CheckRow, ...]
    student_tensors: int

    def __str__(self) -> str:
        head = ("term", "loss", "gradient norm", "teacher/student length", "student tensors reached")
        rows = [
            (
                row.name,
                f"{row.loss:.4g}",
                f"{row.gradient:.3g}",
                f"{row.scale_ratio:.3g}",
                f"{row.reached} of {self.student_tensors}",
            )
            for row in self.rows
        ]
        return _table(head, rows) + "\nthe teacher is in evaluation mode and did not move"


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [head, *rows]]
    return "\n".join(line.rstrip() for line in lines)


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Run a module in training mode, with gradients; afterwards mode, buffers and random state are as before."""
    buffers = {name: value.clone() for name, value in module.named_buffers()}
    was_training = module.training
    devices = sorted({p.device for p in module.parameters() if p.device.type == "cuda"}, key=str)
    with torch.random.fork_rng(devices), torch.enable_grad():
        try:
            module.train()
            yield
        finally:
            module.train(was_training)
            for name, value in module.named_buffers():
                value.copy_(buffers[name])


def check_still(first: Mapping[str, Feature], second: Mapping[str, Feature], paths: Mapping[str, str]) -> None:
    """Whether a teacher gave the same features twice.

    Args:
        first: the teacher's features of a batch, by the name of the pair.
        second: the teacher's features of the same batch in a second run.
        paths: path at which each was read, for the message.

    Raises:
        ArgumentError: a feature is another one the second time.
    """
    for name, feature in first.items():
        if not torch.equal(feature.tensor, second[name].tensor):
            raise ArgumentError(
                "teacher",
                "give the same features twice",
                f"two answers for '{paths[name]}'",
                "Dropout or another source of chance is active inside its forward; switch it off.",
            )


def check_terms(
    losses: Mapping[str, Tensor],
    features: Mapping[str, tuple[Feature, Feature]],
    parameters: Sequence[nn.Parameter],
) -> Check:
    """Whether the gradient of each term reaches the student.

    Args:
        losses: the losses by the name of the term, with their graph.
        features: the features of student and teacher that each term compares, by the same names.
        parameters: the student's parameters that are trained.

    Raises:
        ArgumentError: the gradient of a term is zero, infinite or NaN.
    """
    rows = []
    for name, loss in losses.items():
        gradients = _gradients(loss, parameters)
        norm = float(torch.stack([g.norm() for g in gradients]).norm()) if gradients else 0.0
        _check_gradient(name, norm)
        ours, theirs = features[name]
        ratio = _length(theirs) / max(_length(ours), 1e-12)
        rows.append(CheckRow(name, float(loss.detach()), norm, ratio, len(gradients)))
    return Check(tuple(rows), len(parameters))


def _gradients(loss: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    if not loss.requires_grad or not parameters:
        return []
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return [gradient for gradient in found if gradient is not None and bool(gradient.any())]


def _check_gradient(name: str, norm: float) -> None:
    if not 0 < norm < float("inf"):
        raise ArgumentError(
            "student",
            f"get a finite gradient from '{name}'",
            "none" if norm == 0 else norm,
            "Look for frozen parameters, a detach or no_grad before the tap, or two sides that agree already.",
        )


def _length(feature: Feature) -> float:
    return float(as_vector(feature).detach().norm(dim=-1).mean())
