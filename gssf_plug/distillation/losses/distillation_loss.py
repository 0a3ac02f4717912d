"""What every distillation loss is: `loss(student, teacher, mask=None)` -> scalar, and the checks they share.

student and teacher are vectors (N, D) or tokens (N, T, D); row i of both belongs to the same example; mask (N, T) is
true where a token counts. Every loss sums in float32 or better. There are two kinds:

    per example      the mean over examples of something that each example has alone. Gradient accumulation over equal
                     micro-batches gives the gradient of the large batch.
    relational       compares examples with one another. It sees the whole batch of all processes (`gather`), needs at
                     least two examples, and gradient accumulation is NOT the large batch: pairs across micro-batches
                     are never formed.

The teacher side never gets a gradient.
"""

from typing import ClassVar, TypeGuard

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gssf_plug.arguments import FLOATS, checked_number, described, is_dense
from gssf_plug.distributed import gather, gather_detached
from gssf_plug.errors import ArgumentError
from gssf_plug.features import Mask, mean_pool

__all__ = ["DistillationLoss", "FeatureLoss", "mean_per_example", "require_positive"]


class DistillationLoss(nn.Module):
    """A loss between student and teacher features. Subclasses set the three flags and write `compute`.

    Attributes:
        relational: compares examples with one another; gathers over processes.
        vectors: takes one vector per example; tokens are averaged under their mask, so lengths may differ.
        same_width: student and teacher channels must correspond, so the Distiller puts a projector where widths differ
            (an instance may differ from its class).

    Shape:
        student (N, D) or (N, T, D), teacher the same with its own width, mask (N, T) -> scalar, float32 or better.

    Raises:
        ArgumentError: a side is no tensor of real numbers; the two have unequal batch sizes, lengths or (where
            `same_width`) widths; the mask has another shape, or stands beside vectors; or a relational loss gets fewer
            than two examples.
    """

    relational: ClassVar[bool] = False
    vectors: ClassVar[bool] = False
    same_width: bool = False

    def forward(
        self, student: Float[Tensor, " n *s"], teacher: Float[Tensor, " n *t"], mask: Mask | None = None
    ) -> Float[Tensor, ""]:
        """Check, bring to float32, pool and gather where the class says so, compute."""
        _check_batches(student, teacher)
        if mask is not None and not _holds_numbers(mask):
            remedy = "Give the attention mask of the student's tokens, or None for vectors."
            raise ArgumentError("mask", "be None or a tensor with one value per token", described(mask), remedy)
        dtype = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
        student, teacher = student.to(dtype), teacher.detach().to(dtype)
        if self.vectors:
            student, teacher, mask = _pooled(student, mask), _pooled(teacher, mask), None
        if self.relational:
            student, teacher = gather(student), gather_detached(teacher)
            _check_two_examples(type(self).__name__, len(student))
        elif len(student) == 0:  # a mean over nothing is NaN
            raise ArgumentError("student", "hold at least one example", "an empty batch", "Leave such batches out.")
        self._check_shapes(student, teacher, mask)
        if mask is not None:  # zeros, since a NaN in padding would spoil gradients even where its value is dropped
            mask = mask.bool()
            student, teacher = (torch.where(mask[..., None], f, 0.0) for f in (student, teacher))
        return self.compute(student, teacher, mask)

    def compute(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Float[Tensor, ""]:
        """The formula, on checked features of one floating dtype; `teacher` has no gradient."""
        raise NotImplementedError

    def _check_shapes(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> None:
        if student.shape[1:-1] != teacher.shape[1:-1]:
            raise ArgumentError(
                "teacher",
                f"have as many tokens as the student, shape {tuple(student.shape[:-1])} + width",
                tuple(teacher.shape),
                "The Distiller resizes them; in your own loop pool or interpolate first.",
            )
        if self.same_width and student.shape[-1] != teacher.shape[-1]:
            raise ArgumentError(
                "student",
                f"have the teacher's width {teacher.shape[-1]} for {type(self).__name__}",
                student.shape[-1],
                "Put a projector between them: the Distiller does so with projector='auto'.",
            )
        if mask is not None and (student.ndim != 3 or mask.shape != student.shape[:-1]):
            rule = f"have shape {tuple(student.shape[:-1])}, one value per token"
            raise ArgumentError(
                "mask",
                rule if student.ndim == 3 else "be None for vectors",
                tuple(mask.shape),
                "Give the attention mask of the student's tokens, or None for vectors.",
            )


FeatureLoss = (
    DistillationLoss  # its name before: kept, since `gssf_plug.losses` has an `EmbeddingLoss` of that name, too
)


def mean_per_example(values: Float[Tensor, " n *t"], mask: Tensor | None) -> Float[Tensor, ""]:
    """Mean over the valid tokens of each example, then over examples that have any: each example weighs the same."""
    if mask is None:
        return values.flatten(1).mean(1).mean() if values.ndim > 1 else values.mean()
    count = mask.sum(1)
    rows = torch.where(mask, values, 0.0).sum(1) / count.clamp_min(1)
    return rows.sum() / count.gt(0).sum().clamp_min(1)


def require_positive(name: str, value: float) -> None:
    """Raise unless the value is a number, and 0 < value < ∞."""
    remedy = "Distillation usually takes a value from 0.05 to 10."
    checked_number(name, value, "be a positive number", remedy, lambda number: number > 0)


def _pooled(features: Tensor, mask: Tensor | None) -> Tensor:
    return features if features.ndim == 2 else mean_pool(features, mask)


def _check_batches(student: Tensor, teacher: Tensor) -> None:
    for name, features in (("student", student), ("teacher", teacher)):
        if not _holds_numbers(features):
            remedy = "Give the features as the model returns them; dense, and on a device that holds values."
            raise ArgumentError(name, "be a tensor of real numbers", described(features), remedy)
        if features.ndim not in (2, 3):
            raise ArgumentError(
                name,
                "be vectors (N, D) or tokens (N, T, D)",
                f"shape {tuple(features.shape)}",
                "See gssf_plug.features.as_tokens for maps.",
            )
    if len(student) != len(teacher):
        raise ArgumentError(
            "teacher",
            f"have the student's batch size {len(student)}",
            len(teacher),
            "Row i of both must be the same example.",
        )


def _holds_numbers(value: object) -> TypeGuard[Tensor]:
    return is_dense(value) and not value.is_complex() and (not value.is_floating_point() or value.dtype in FLOATS)


def _check_two_examples(name: str, count: int) -> None:
    if count < 2:
        raise ArgumentError(
            "student",
            f"hold at least two examples for {name}, which compares examples with one another",
            count,
            "Raise the batch size, drop the last short batch, or use a loss per example such as MSE.",
        )
