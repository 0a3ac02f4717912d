"""The objectives of this library: student and teacher compared through the structured metric."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from gssf_plug.arguments import checked_flag
from gssf_plug.distillation.losses.distillation_loss import DistillationLoss, mean_per_example, require_positive
from gssf_plug.distillation.losses.relational import same_example
from gssf_plug.errors import ArgumentError
from gssf_plug.losses import InfoNCE
from gssf_plug.metric import GSSFMetric
from gssf_plug.metric.options import require_metric

__all__ = ["Contrastive", "Regression", "Relation"]


class Relation(DistillationLoss):
    r"""The student's similarities, measured by its metric, should be the teacher's cosines.

        mean over i ≠ j of ( s(x_i, x_j) - cos(t_i, t_j) )²,      s: the metric on the student's own features

    With a temperature τ the nearest count most: the rows become distributions over the other examples,

        mean over i of KL( softmax_j≠i(cos(t_i, t_j) / τ) ‖ softmax_j≠i(s(x_i, x_j) / τ) ).

    The metric cannot cheat by its scale, since the targets are given. It ships with the student: s is what you rank
    with afterwards (`metric.fold` on the query side), and without it the plain cosine of the student still serves.

    Args:
        metric: metric of the student's width, or of the teacher's where `projected`. Both sides of a pair are of one
            kind, so give it constraint="symmetric" or "psd".
        projected: True measures the student's features behind the pair's projector, which then ships with the metric.
            Default False.
        temperature: temperature τ of the softmax over similarities, above 0, usually 0.05 to 0.2; None (default) takes
            the squared error instead.

    Raises:
        ArgumentError: the metric is none, `projected` is neither True nor False, or the temperature is not positive.

    Relations:
        `SP` compares rows after normalisation, `PKT` distributions without a temperature; both take the metric too.
    """

    relational, vectors = True, True

    def __init__(self, metric: GSSFMetric, *, projected: bool = False, temperature: float | None = None) -> None:
        super().__init__()
        require_metric(metric, "Build one of the student's width: GSSFMetric(dim, constraint='symmetric').")
        if temperature is not None:
            require_positive("temperature", temperature)
        self.metric = metric
        self.same_width = checked_flag("projected", projected)
        self.temperature = temperature

    def compute(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Float[Tensor, ""]:
        """Mean squared difference off the diagonal, or mean divergence of the rows."""
        target = (unit := normalize(teacher, dim=-1)) @ unit.T
        scores = self.metric(student, student)
        if self.temperature is None:
            difference = (scores - target).square()
            # an item with itself is no relation: the target is 1 whatever the teacher knows
            return (difference.sum() - difference.diagonal().sum()) / (len(student) * (len(student) - 1))
        itself = torch.eye(len(student), dtype=torch.bool, device=student.device)
        ours, theirs = (
            (s / self.temperature).masked_fill(itself, float("-inf")).log_softmax(1) for s in (scores, target)
        )
        # on the diagonal -inf less -inf is NaN, and so is 0 times that
        return (theirs.exp() * (theirs - ours).masked_fill(itself, 0.0)).sum(1).mean()


class Contrastive(DistillationLoss):
    """Each student feature must find its own teacher feature among those of the batch, and the other way round.

    InfoNCE in both directions over the scores of the metric, with a learned scale; the batch is that of all processes.
    Rows with equal teacher features count as the same example.

    Args:
        metric: metric of the teacher's width that scores student and teacher; the student comes through a projector.
        scale: factor on the scores at the start, which is learned and at most 100; default 1/0.07.

    Raises:
        ArgumentError: the metric is none, or the scale is outside its range.

    References:
        CRD, arXiv 1910.10699, for the idea; CLIP, arXiv 2103.00020, for the learned scale.
    """

    relational, vectors, same_width = True, True, True

    def __init__(self, metric: GSSFMetric, *, scale: float = 1 / 0.07) -> None:
        super().__init__()
        require_metric(metric, "Build one of the teacher's width: GSSFMetric(dim).")
        self.metric = metric
        self.contrast = InfoNCE(scale=scale)

    def compute(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Float[Tensor, ""]:
        """InfoNCE over metric(student, teacher)."""
        return self.contrast(self.metric(student, teacher), same_example(teacher))


class Regression(DistillationLoss):
    r"""Gaussian likelihood of the teacher's feature, whose precision is the structured metric.

        mean of ½ ( rᵀ Λ r - log det Λ ) / D,     r = student - teacher,   Λ = LᵀL

    Without the determinant the metric would lower the loss by shrinking. In units of the teacher's features; at the
    start Λ = 1, and the loss is half of `MSE`.

    Args:
        metric: metric of the teacher's width with constraint="psd" and normalize=False, the precision; the student
            comes through a projector.

    Raises:
        ArgumentError: the metric is none, may be negative, or normalises, which would take a residual's length away.

    Relations:
        `VID` is the diagonal case.
    """

    same_width = True

    def __init__(self, metric: GSSFMetric) -> None:
        super().__init__()
        remedy = "Build it with GSSFMetric(dim, constraint='psd', normalize=False)."
        require_metric(metric, remedy)
        if metric.constraint != "psd" or metric.normalize:
            raise ArgumentError(
                "metric",
                "have constraint='psd' and normalize=False, since it is the precision of a Gaussian",
                f"constraint={metric.constraint!r}, normalize={metric.normalize}",
                remedy,
            )
        self.metric = metric

    def compute(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Float[Tensor, ""]:
        """The negative log-likelihood less its constant, per channel."""
        residual = student - teacher
        distance = mean_per_example(self.metric.pairwise(residual, residual), mask)
        return (distance - self.metric.log_determinant()) / (2 * self.metric.dim)
