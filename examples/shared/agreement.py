"""How far a student agrees with its teacher: similarities, neighbours, a task of its own; plain and with its extras."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from gssf_plug import GSSFMetric

__all__ = ["MEASURES", "Score", "agreement", "average_precisions", "cosine", "row_correlations", "shared_neighbours"]

MEASURES = ("rho", "NN@10", "mAP")
Score = Callable[[Tensor, Tensor], Tensor]


def agreement(
    student: Tensor,
    teacher: Tensor,
    projector: nn.Module,
    metric: GSSFMetric | None,
    precision: Callable[[Score], Tensor],
) -> dict[str, list[float]]:
    """rho, NN@10 and mAP in %, of the student's plain cosine and with what was trained beside it."""
    similarity, target = metric or cosine, cosine(teacher, teacher)
    result = {}
    for kind, score in (("plain", cosine), ("own", lambda x, y: similarity(projector(x), projector(y)))):
        ours = score(student, student)
        result[f"rho {kind}"] = row_correlations(ours, target)
        result[f"NN@10 {kind}"] = shared_neighbours(ours, target)
        result[f"mAP {kind}"] = precision(score)
    return {key: [round(value, 4) for value in (100 * values).tolist()] for key, values in result.items()}


def cosine(x: Tensor, y: Tensor) -> Tensor:
    """All pairs."""
    return normalize(x, dim=-1) @ normalize(y, dim=-1).T


def row_correlations(ours: Tensor, theirs: Tensor) -> Tensor:
    """Spearman correlation of each row with the teacher's, the diagonal left out."""
    off = ~torch.eye(len(ours), dtype=torch.bool)
    ranks = [s[off].view(len(s), -1).argsort(1).argsort(1).double() for s in (ours, theirs)]
    a, b = (rank - rank.mean(1, keepdim=True) for rank in ranks)
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))


def shared_neighbours(ours: Tensor, theirs: Tensor, k: int = 10) -> Tensor:
    """Share of the k nearest, itself left out, that both sides agree on."""
    itself = torch.eye(len(ours), dtype=torch.bool)
    near = [s.masked_fill(itself, float("-inf")).topk(k).indices for s in (ours, theirs)]
    return (near[0][:, :, None] == near[1][:, None, :]).any(2).double().mean(1)


def average_precisions(scores: Tensor, relevant: Tensor) -> Tensor:
    """Average precision of each query."""
    right = relevant.gather(1, scores.argsort(1, descending=True)).double()
    precision = right.cumsum(1) / torch.arange(1, right.shape[1] + 1)
    return (precision * right).sum(1) / right.sum(1)
