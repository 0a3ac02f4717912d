"""The proof behind `Distiller.check`: gradients of every term on the student, and a teacher that stands still.

What a Distiller will do (`Plan`) and the proof that it works (`Check`): two tables to print.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gssf_plug.distillation.shape_matching import as_vector
from gssf_plug.distillation.taps import Feature
from gssf_plug.errors import ArgumentError

if TYPE_CHECKING:
    from gssf_plug.distillation.distiller import Distiller

__all__ = ["Check", "CheckRow", "Plan", "PlanRow", "check_distiller"]


@dataclass(frozen=True)
class PlanRow:
    """One term of the loss."""

    student: str
    teacher: str
    student_shape: tuple[int, ...]
    teacher_shape: tuple[int, ...]
    loss: str
    weight: float
    projector: str
    parameters: int


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
                row.student or "(output)",
                row.teacher or "(output)",
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


def check_distiller(distiller: "Distiller", batch: Any) -> Check:
    """See `Distiller.check`."""
    buffers = {name: value.clone() for name, value in distiller.named_buffers()}
    was_training = distiller.training
    devices = [distiller_device] if (distiller_device := _device(distiller)).type == "cuda" else []
    with torch.random.fork_rng(devices), torch.enable_grad():
        try:
            distiller.train()
            return _measure(distiller, batch)
        finally:
            distiller.train(was_training)
            for name, value in distiller.named_buffers():
                value.copy_(buffers[name])


def _measure(distiller: "Distiller", batch: Any) -> Check:
    parameters = [p for p in distiller.student.parameters() if p.requires_grad]
    first = distiller.teacher.features(batch, _device(distiller))
    ours, theirs, _ = distiller._read(batch, None)
    losses = distiller._compare(ours, theirs)
    for name, feature in first.items():
        if not torch.equal(feature.tensor, theirs[name].tensor):
            raise ArgumentError(
                "teacher",
                "give the same features twice",
                f"two answers for '{distiller.pairs[int(name)][1].path}'",
                "Dropout or another source of chance is active inside its forward; switch it off.",
            )
    rows = []
    for (pair, _), (name, loss) in zip(distiller._terms(), losses.items(), strict=True):
        gradients = _gradients(loss, parameters)
        norm = float(torch.stack([g.norm() for g in gradients]).norm()) if gradients else 0.0
        _check_gradient(name, norm)
        ratio = _length(theirs[str(pair)]) / max(_length(ours[str(pair)]), 1e-12)
        rows.append(CheckRow(name, float(loss.detach()), norm, ratio, len(gradients)))
    return Check(tuple(rows), len(parameters))


def _gradients(loss: Tensor, parameters: list[torch.nn.Parameter]) -> list[Tensor]:
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


def _device(distiller: "Distiller") -> torch.device:
    return next(distiller.student.parameters()).device
