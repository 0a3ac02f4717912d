"""Two candidates that the library does not hold: a diagonal that looks at the query, and one metric per direction.

Both fold into the query, as every structure of the library does, so either could be served at no cost.
"""

import torch
from shared.baselines import FixedCosine
from torch import Tensor, nn

from gssf_plug import GSSFMetric
from gssf_plug.losses import InfoNCE

__all__ = ["ConditionedDiagonal", "PerDirection", "PerDirectionSoftmax"]


class ConditionedDiagonal(FixedCosine):
    """x̂ᵀ diag(1 + B(Ax̂)) ŷ: the weights of channels depend on the query; cosine at start, since B is zero there.

    Args:
        dim: width D.
        rank: rows of A.
    """

    def __init__(self, dim: int, rank: int) -> None:
        super().__init__(dim)
        self.a = nn.Parameter(torch.randn(rank, dim) / dim**0.5)
        self.b = nn.Parameter(torch.zeros(dim, rank))

    def fold(self, queries: Tensor) -> Tensor:
        """x̂ ⊙ (1 + B(Ax̂))."""
        normalised = super().fold(queries)
        return normalised * (1 + normalised @ self.a.T @ self.b.T)


class PerDirection(nn.Module):
    """One metric where queries ask and another where the gallery asks; the first is what is measured.

    In training mode the scores of both, stacked, for `PerDirectionSoftmax`.

    Args:
        dim: width D.
        block_size: of either.
    """

    def __init__(self, dim: int, block_size: int) -> None:
        super().__init__()
        self.forwards, self.backwards = (GSSFMetric(dim, block_size=block_size) for _ in range(2))

    def forward(self, queries: Tensor, gallery: Tensor) -> Tensor:
        """(N, D), (M, D) -> (N, M), or (2, N, M) in training."""
        scores: Tensor = self.forwards(queries, gallery)
        return torch.stack([scores, self.backwards(gallery, queries).T]) if self.training else scores


class PerDirectionSoftmax(nn.Module):
    """InfoNCE whose rows see the first of two score matrices and whose columns the second; one learned scale."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = InfoNCE().scale

    def forward(self, scores: Tensor, relevant: Tensor, *, forbidden: Tensor) -> Tensor:
        """Scores (2, N, M) and masks (N, M) to a scalar."""
        scaled = self.scale.begin()
        positive = relevant & ~forbidden
        rows = _surprise(scaled(scores[0]), positive, forbidden)
        columns = _surprise(scaled(scores[1]).T, positive.T, forbidden.T)
        return (rows + columns) / 2


def _surprise(logits: Tensor, positive: Tensor, hidden: Tensor) -> Tensor:
    surprise = -logits.masked_fill(hidden, float("-inf")).log_softmax(1)
    return (torch.where(positive, surprise, 0.0).sum(1) / positive.sum(1).clamp_min(1)).mean()
