"""The classic losses that each example has alone: FitNets, cosine, attention transfer, VID, MGD, softened logits."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, normalize, softplus

from gssf_plug.arguments import LARGEST, WHOLE, checked_count, checked_number
from gssf_plug.distillation.losses.distillation_loss import DistillationLoss, mean_per_example, require_positive
from gssf_plug.errors import ArgumentError

__all__ = ["MGD", "MSE", "VID", "AttentionTransfer", "Cosine", "LogitKL"]


class MSE(DistillationLoss):
    """FitNets' hint: mean of (s - t)² over channels and valid tokens.

    References:
        Romero et al., arXiv 1412.6550.
    """

    same_width = True

    def compute(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Float[Tensor, ""]:
        """Mean of (s - t)²."""
        return mean_per_example((student - teacher).square().mean(-1), mask)


class Cosine(DistillationLoss):
    """Mean of 1 - cos(s, t) over valid tokens. Blind to the norm of features.

    References:
        Sanh et al., DistilBERT, arXiv 1910.01108.
    """

    same_width = True

    def compute(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Float[Tensor, ""]:
        """Mean of 1 - cos."""
        return mean_per_example(1 - cosine_similarity(student, teacher, dim=-1, eps=1e-12), mask)


class AttentionTransfer(DistillationLoss):
    """Where the energy of a feature map lies: A_p = mean_c F_pc², Â = A / ‖A‖ over positions; mean of (Â_s - Â_t)².

    Takes tokens or maps only: a vector has no positions. Widths may differ.

    References:
        Zagoruyko and Komodakis, arXiv 1612.03928 (p = 2); the mean over positions as in RepDistiller.
    """

    def compute(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Float[Tensor, ""]:
        """Mean of (Â_s - Â_t)²."""
        if student.ndim != 3:
            raise ArgumentError(
                "student",
                "be tokens (N, T, D) for AttentionTransfer, which compares positions",
                f"shape {tuple(student.shape)}",
                "Tap a layer that keeps its tokens or its map, without pooling.",
            )
        return mean_per_example((_energy(student, mask) - _energy(teacher, mask)).square(), mask)


class VID(DistillationLoss):
    r"""Variational information distillation: a Gaussian with one learned variance per channel.

        mean ½ ((s_c - t_c)² / v_c + log v_c),     v_c = softplus(θ_c) + 1e-5

    Args:
        dim: width of the teacher's features; the student comes through a projector.
        initial_variance: variance v of every channel at the start, above 0; default 5 (RepDistiller).

    References:
        Ahn et al., arXiv 1904.05835.

    Relations:
        `Regression` has a structured precision in the place of the diagonal one.
    """

    same_width = True

    def __init__(self, dim: int, *, initial_variance: float = 5.0) -> None:
        super().__init__()
        dim = checked_count("dim", dim, "Give the width of the features.", rule=WHOLE, most=LARGEST)
        require_positive("initial_variance", initial_variance)
        require_positive("initial_variance - 1e-5", initial_variance - 1e-5)
        # the inverse of softplus, in double precision; where e^x is beyond it, x itself
        above = float(initial_variance) - 1e-5
        start = torch.tensor(above + math.log(-math.expm1(-above)))
        self.raw_variance = nn.Parameter(start.repeat(dim))

    def compute(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Float[Tensor, ""]:
        """The negative log-likelihood less its constant, per channel."""
        variance = softplus(self.raw_variance) + 1e-5
        surprise = (student - teacher).square() / variance + variance.log()
        return mean_per_example(surprise.mean(-1) / 2, mask)


class MGD(DistillationLoss):
    """Masked generative distillation: rebuild the teacher's feature from a student feature with channels dropped.

        mean (G(s ⊙ m) - t)²,   m: each channel of an example kept with probability 1 - share;  G: Linear, ReLU, Linear

    This is the paper's form for classification (channels masked) with 1×1 convolutions. In evaluation nothing is
    dropped.

    Args:
        dim: width of the teacher's features; the student comes through a projector.
        share: share of the channels that are dropped, 0 ≤ share < 1; default 0.15 (the paper's for classification).

    References:
        Yang et al., arXiv 2205.01529.
    """

    same_width = True

    def __init__(self, dim: int, *, share: float = 0.15) -> None:
        super().__init__()
        dim = checked_count("dim", dim, "Give the width of the features.", rule=WHOLE, most=LARGEST)
        remedy = "The paper drops 0.15 of the channels."
        checked_number("share", share, "lie in [0, 1)", remedy, lambda number: 0 <= number < 1)
        self.share = share
        self.generator = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))

    def compute(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Float[Tensor, ""]:
        """MSE after the generator."""
        if self.training and self.share:
            # one draw for all tokens of an example: a channel is dropped everywhere or nowhere
            channels = (len(student), *[1] * (student.ndim - 2), student.shape[-1])
            student = student * (torch.rand(channels, device=student.device) >= self.share)
        weight = self.generator[0].weight
        if student.dtype != weight.dtype and not torch.is_autocast_enabled(student.device.type):
            rule = f"be in {weight.dtype}, as the weights of MGD are, or in a shorter dtype"
            raise ArgumentError("student", rule, student.dtype, "Convert the loss: loss.double().")
        return mean_per_example((self.generator(student) - teacher).square().mean(-1), mask)


class LogitKL(DistillationLoss):
    """Softened logits: T² KL(softmax(t / T) ‖ softmax(s / T)), mean over examples and valid tokens.

    Args:
        temperature: temperature T of both softmaxes, above 0; default 4, as is usual on CIFAR. Language models take 1
            to 2.

    Raises:
        ArgumentError: the temperature is not positive, or the student has other classes than the teacher (a projector
            makes no sense here: tap two heads with the same classes).

    References:
        Hinton et al., arXiv 1503.02531.
    """

    def __init__(self, *, temperature: float = 4.0) -> None:
        super().__init__()
        require_positive("temperature", temperature)
        self.temperature = temperature

    def compute(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Float[Tensor, ""]:
        """T² KL."""
        if student.shape[-1] != teacher.shape[-1]:
            raise ArgumentError(
                "student",
                f"have the teacher's {teacher.shape[-1]} classes for LogitKL",
                student.shape[-1],
                "Use the same label set or vocabulary, or distil features instead.",
            )
        log_student = (student / self.temperature).log_softmax(-1)
        log_teacher = (teacher / self.temperature).log_softmax(-1)
        divergence = (log_teacher.exp() * (log_teacher - log_student)).sum(-1)
        return self.temperature**2 * mean_per_example(divergence, mask)


def _energy(tokens: Float[Tensor, "n t dim"], mask: Tensor | None) -> Float[Tensor, "n t"]:
    energy = tokens.square().mean(-1)
    if mask is not None:
        energy = torch.where(mask, energy, 0.0)
    return normalize(energy, dim=1)
