"""The short names of losses: what `Distiller(..., loss="gssf")` builds once it has seen the widths.

"gssf" is `Relation` with a positive semidefinite metric and temperature 0.1. Relations are where the metric pays: in
the trials (docs/benchmarks_distillation.md) it raised the agreement of the student's similarities with the teacher's by
4 to 7 points of Spearman correlation over the same student's cosine; softened rows kept neighbours and retrieval, which
the squared error lost. Beside a cosine match it was better still: loss=["cosine", "gssf"], weight=[1, 0.1].
"""

from collections.abc import Callable, Mapping

from gssf_plug.distillation.losses.distillation_loss import DistillationLoss
from gssf_plug.distillation.losses.gssf import Relation
from gssf_plug.distillation.losses.pointwise import MGD, MSE, VID, AttentionTransfer, Cosine
from gssf_plug.distillation.losses.relational import CKA, CRD, PKT, RKD, SP
from gssf_plug.errors import ArgumentError, near_matches
from gssf_plug.metric import GSSFMetric

__all__ = ["LOSSES", "Loss", "loss_by_name", "make_metric"]


Loss = str | DistillationLoss


def make_metric(dim: int) -> GSSFMetric:
    """The metric of the default objective: Diag + B-Diag, psd; block: the largest divisor of `dim` up to 16."""
    block = max(size for size in range(1, min(dim, 16) + 1) if dim % size == 0)
    return GSSFMetric(dim, block_size=block, constraint="psd")


# From the widths of student and teacher to a loss with its defaults.
LOSSES: Mapping[str, Callable[[int, int], DistillationLoss]] = {
    "gssf": lambda student, teacher: Relation(make_metric(student), temperature=0.1),
    "mse": lambda student, teacher: MSE(),
    "cosine": lambda student, teacher: Cosine(),
    "at": lambda student, teacher: AttentionTransfer(),
    "sp": lambda student, teacher: SP(),
    "rkd": lambda student, teacher: RKD(),
    "pkt": lambda student, teacher: PKT(),
    "crd": lambda student, teacher: CRD(),
    "vid": lambda student, teacher: VID(teacher),
    "cka": lambda student, teacher: CKA(),
    "mgd": lambda student, teacher: MGD(teacher),
}


def loss_by_name(name: str, student_dim: int, teacher_dim: int) -> DistillationLoss:
    """The loss of that name with its defaults.

    Raises:
        ArgumentError: there is no loss of that name.
    """
    if name not in LOSSES:
        raise ArgumentError("loss", "be a loss object or a short name", repr(name), near_matches(name, LOSSES))
    return LOSSES[name](student_dim, teacher_dim)
