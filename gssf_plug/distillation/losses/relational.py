"""The classic losses that compare examples with one another; a `GSSFMetric` may take the place of the inner product.

SP, RKD and PKT see the student only through its N×N matrix of inner products, CRD through the N×N matrix of student
against teacher; `metric` replaces that matrix by metric(x, y) (for SP, RKD, PKT with the student's width, for CRD with
the teacher's). The teacher's matrix stays as the paper has it. All take one vector per example.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize, smooth_l1_loss

from gssf_plug.arguments import checked_number
from gssf_plug.distillation.losses.distillation_loss import DistillationLoss, require_positive
from gssf_plug.losses import InfoNCE
from gssf_plug.metric import GSSFMetric
from gssf_plug.metric.options import check_metric

__all__ = ["CKA", "CRD", "PKT", "RKD", "SP", "same_example"]


class SP(DistillationLoss):
    """Similarity-preserving: G = X Xᵀ, rows L2-normalised; ‖Ĝ_s - Ĝ_t‖² / N².

    Args:
        metric: metric of the student's width that takes the place of the student's inner product; None (default) keeps
            it.

    References:
        Tung and Mori, arXiv 1907.09682.
    """

    relational, vectors = True, True

    def __init__(self, metric: GSSFMetric | None = None) -> None:
        super().__init__()
        check_metric(metric)
        self.metric = metric

    def compute(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Float[Tensor, ""]:
        """Mean squared difference of the normalised rows."""
        gram = student @ student.T if self.metric is None else self.metric(student, student)
        return (normalize(gram) - normalize(teacher @ teacher.T)).square().mean()


class PKT(DistillationLoss):
    """Probabilistic knowledge transfer: rows of (cos + 1) / 2 as distributions; mean of p_t log(p_t / p_s) over pairs.

    Args:
        metric: metric of the student's width that takes the place of its cosine s; None (default) keeps it. Where
            scores leave [-1, 1], (s + 1) / 2 is kept above 1e-7.

    References:
        Passalis and Tefas, arXiv 1803.10837; the mean over N² as in RepDistiller.
    """

    relational, vectors = True, True

    def __init__(self, metric: GSSFMetric | None = None) -> None:
        super().__init__()
        check_metric(metric)
        self.metric = metric

    def compute(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Float[Tensor, ""]:
        """Mean of p_t log(p_t / p_s)."""
        scores = _cosines(student) if self.metric is None else self.metric(student, student)
        of_student, of_teacher = _row_distribution(scores), _row_distribution(_cosines(teacher))
        return (of_teacher * (of_teacher.log() - of_student.log())).mean()


class RKD(DistillationLoss):
    """Relational distillation of distances and angles: w_d L_distance + w_a L_angle, both smooth L1.

        distance: d_ij / mean of d_ij > 0, over all pairs;   angle: cos ∠(i, j, k), over all triples

    Args:
        metric: metric of the student's width: d_ij² = s_ii + s_jj - s_ij - s_ji takes the place of ‖x_i - x_j‖²; None
            (default) keeps that. Use constraint="psd", or distances below 0 are cut off.
        distance_weight: factor w_d of the distances, at least 0; default 25, the paper's for classification.
        angle_weight: factor w_a of the angles, at least 0; default 50, the paper's. 0 leaves a part out; the angles
            take memory N³.

    References:
        Park et al., arXiv 1904.05068.
    """

    relational, vectors = True, True

    def __init__(
        self, metric: GSSFMetric | None = None, *, distance_weight: float = 25.0, angle_weight: float = 50.0
    ) -> None:
        super().__init__()
        check_metric(metric)
        for name, weight in (("distance_weight", distance_weight), ("angle_weight", angle_weight)):
            checked_number(name, weight, "be at least 0", "The paper takes 25 and 50.", lambda number: number >= 0)
        require_positive("distance_weight + angle_weight", distance_weight + angle_weight)
        self.metric = metric
        self.distance_weight = distance_weight
        self.angle_weight = angle_weight

    def compute(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Float[Tensor, ""]:
        """Weighted sum of the two parts."""
        ours = _inner_products(student) if self.metric is None else self.metric(student, student)
        ours, theirs = (ours + ours.T) / 2, _inner_products(teacher)
        total = ours.new_zeros(())
        if self.distance_weight:
            total = total + self.distance_weight * smooth_l1_loss(
                _relative_distances(ours), _relative_distances(theirs)
            )
        if self.angle_weight:
            total = total + self.angle_weight * smooth_l1_loss(_angles(ours), _angles(theirs))
        return total


class CRD(DistillationLoss):
    """Contrastive representation distillation within the batch: find your own teacher feature, in both directions.

    InfoNCE over cos(s, t) / T. The paper's memory bank of the whole data set is replaced by the batch of all processes.

    Args:
        metric: metric of the teacher's width that takes the place of the cosine; None (default) keeps it.
        temperature: temperature T, above 0; default 0.07 (the paper's).

    References:
        Tian et al., arXiv 1910.10699.

    Relations:
        `Contrastive` learns its temperature.
    """

    relational, vectors, same_width = True, True, True

    def __init__(self, metric: GSSFMetric | None = None, *, temperature: float = 0.07) -> None:
        super().__init__()
        check_metric(metric)
        require_positive("temperature", temperature)
        self.metric = metric
        scale = 1 / temperature
        self.contrast = InfoNCE(scale=scale, scale_range=(scale / 2, 2 * scale), learned_scale=False)

    def compute(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Float[Tensor, ""]:
        """InfoNCE."""
        if self.metric is None:
            scores = normalize(student, dim=-1) @ normalize(teacher, dim=-1).T
        else:
            scores = self.metric(student, teacher)
        return self.contrast(scores, same_example(teacher))


class CKA(DistillationLoss):
    """1 - linear CKA of the batch: 1 - ⟨K, L⟩ / (‖K‖ ‖L‖) of the centred matrices of inner products.

    Blind to rotation and scale of either side. Small batches bias it upward.

    References:
        Kornblith et al., arXiv 1905.00414.
    """

    relational, vectors = True, True

    def compute(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Float[Tensor, ""]:
        """1 - CKA."""
        # the Gram matrix of centred rows is the doubly centred Gram matrix of the formula
        ours, theirs = ((x := f - f.mean(0)) @ x.T for f in (student, teacher))
        return 1 - (ours * theirs).sum() / (ours.norm() * theirs.norm()).clamp_min(1e-12)


def same_example(teacher: Float[Tensor, "n dim"]) -> Bool[Tensor, "n n"]:
    """True where two rows have the same teacher feature: an example met twice is no negative of itself."""
    equal = torch.cdist(teacher, teacher, p=float("inf")) <= 1e-6 * teacher.abs().amax().clamp_min(1e-12)
    return equal | torch.eye(len(teacher), dtype=torch.bool, device=teacher.device)


def _cosines(x: Float[Tensor, "n dim"]) -> Float[Tensor, "n n"]:
    x = normalize(x, dim=-1)
    return x @ x.T


def _row_distribution(scores: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    # cosines to [0, 1], as the source does; a metric may leave [-1, 1]
    positive = ((scores + 1) / 2).clamp_min(1e-7)
    return positive / positive.sum(1, keepdim=True)


def _inner_products(x: Float[Tensor, "n dim"]) -> Float[Tensor, "n n"]:
    """Centred first: distances are the same, and far fewer digits are lost when they are formed from products."""
    x = x - x.mean(0)
    return x @ x.T


def _distances(gram: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    own = gram.diagonal()
    other = ~torch.eye(len(gram), dtype=torch.bool, device=gram.device)
    # ‖a - b‖² = ‖a‖² + ‖b‖² - 2⟨a, b⟩; rounding may bring it below 0
    squared = (own[:, None] + own[None, :] - 2 * gram).clamp_min(1e-12)
    return torch.where(other, torch.where(other, squared, 1.0).sqrt(), 0.0)  # the inner where keeps √0 out of backward


def _relative_distances(gram: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    distances = _distances(gram)
    # over their mean off the diagonal: N (N - 1) pairs, and zeros on the diagonal add nothing
    return distances * (len(gram) * (len(gram) - 1)) / distances.sum().clamp_min(1e-12)


def _angles(gram: Float[Tensor, "n n"]) -> Float[Tensor, "n n n"]:
    """[j, i, k] = cos of the angle at j between i and k, from products alone: ⟨x_i - x_j, x_k - x_j⟩ / (d_ij d_kj)."""
    distances = _distances(gram)
    # ⟨i - j, k - j⟩ = ⟨i, k⟩ - ⟨i, j⟩ - ⟨j, k⟩ + ⟨j, j⟩, with j in front
    inner = gram[None] - gram[:, :, None] - gram[:, None, :] + gram.diagonal()[:, None, None]
    product = distances[:, :, None] * distances[:, None, :]
    return torch.where(product > 0, inner / torch.where(product > 0, product, 1.0), 0.0)
