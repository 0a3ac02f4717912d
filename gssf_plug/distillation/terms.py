"""The terms of one pair: its losses, the one projector that they share, and their values.

A projector serves the losses that compare channel by channel (`same_width`); the others see the student's own features.
Each form of the features (tokens or one vector, projected or not) is made once, however many losses ask for it.
"""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn

from gssf_plug.distillation.losses.distillation_loss import FeatureLoss
from gssf_plug.distillation.shape_matching import align, as_vector
from gssf_plug.distillation.taps import Feature
from gssf_plug.errors import ArgumentError

__all__ = ["compare", "projector_for"]


def projector_for(
    losses: Sequence[FeatureLoss], asked: str | nn.Module | None, student_dim: int, teacher_dim: int
) -> nn.Module:
    """The projector of a pair: the given one; a Linear where "auto" and widths differ; else the identity.

    Raises:
        ArgumentError: a given projector that no loss would use.
    """
    serves = any(loss.same_width for loss in losses)
    if isinstance(asked, nn.Module):
        if not serves:
            raise ArgumentError(
                "projector",
                "serve a loss that compares channel by channel",
                f"{[type(loss).__name__ for loss in losses]}, which see the student's own features",
                "Leave it out, or tap the student after a projection of its own.",
            )
        return asked
    return (
        nn.Linear(student_dim, teacher_dim)
        if serves and asked == "auto" and student_dim != teacher_dim
        else nn.Identity()
    )


def compare(student: Feature, teacher: Feature, projector: nn.Module, losses: Sequence[FeatureLoss]) -> list[Tensor]:
    """The value of each loss, in float32 or better."""

    @cache
    def form(vectors: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        x, y, mask = (as_vector(student), as_vector(teacher), None) if vectors else align(student, teacher)
        return x.to(torch.promote_types(x.dtype, torch.float32)), y, mask

    @cache
    def projected(vectors: bool) -> Tensor:
        result: Tensor = projector(form(vectors)[0])
        return result

    with torch.autocast(student.tensor.device.type, enabled=False):
        values = []
        for loss in losses:
            own, theirs, mask = form(loss.vectors)
            values.append(loss(projected(loss.vectors) if loss.same_width else own, theirs, mask))
        return values
