"""What a Distiller will do (`Plan`) and the proof that it works (`Check`): two tables to print."""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Check", "CheckRow", "Plan", "PlanRow"]


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
