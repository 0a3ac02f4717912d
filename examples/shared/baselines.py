"""What a structured metric is compared with, in the form of `GSSFMetric`: fold the query, leave the gallery alone.

`FixedCosine` has nothing to learn, `ScaledCosine` one number (in a margin loss, scale alone explains part of any gain),
`LowRank` as many as one likes: x̂ᵀ(I + AᵀB)ŷ. The full matrix is `GSSFMetric(dim, terms=("dense",))`.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

__all__ = ["FixedCosine", "LowRank", "ScaledCosine"]


class FixedCosine(nn.Module):
    """Cosine: s(x, y) = x̂ᵀŷ. The others of this file change `fold` only.

    Args:
        dim: width D of the features.
    """

    normalize = True  # as of a GSSFMetric: `topk` asks whether the gallery side is normalised

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, queries: Tensor, gallery: Tensor) -> Tensor:
        """All pairs: (..., N, D), (..., M, D) -> (..., N, M)."""
        return self.fold(queries) @ self.gallery(gallery).mT

    def aligned(self, x: Tensor, y: Tensor) -> Tensor:
        """Pairs: (..., D), (..., D) -> (...)."""
        return (self.fold(x) * self.gallery(y)).sum(-1)

    def fold(self, queries: Tensor) -> Tensor:
        """The query side, (..., D) -> (..., D)."""
        return normalize(queries, dim=-1)

    def gallery(self, items: Tensor) -> Tensor:
        """The gallery side, (..., D) -> (..., D), normalised."""
        return normalize(items, dim=-1)


class ScaledCosine(FixedCosine):
    """Cosine times one learned positive scale, 1 at start. Ranks exactly as cosine does; only the training differs."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.log_scale = nn.Parameter(torch.zeros(()))

    def fold(self, queries: Tensor) -> Tensor:
        """e^s x̂."""
        return super().fold(queries) * self.log_scale.exp()


class LowRank(FixedCosine):
    """x̂ᵀ(I + AᵀB)ŷ with A, B of rank×D; cosine at start, since B is zero there (as in LoRA).

    Args:
        dim: width D.
        rank: r; 2·D·r parameters.
    """

    def __init__(self, dim: int, rank: int) -> None:
        super().__init__(dim)
        self.down = nn.Parameter(torch.randn(rank, dim) / dim**0.5)
        self.up = nn.Parameter(torch.zeros(rank, dim))

    def fold(self, queries: Tensor) -> Tensor:
        """x̂ + (x̂ Aᵀ) B."""
        x = super().fold(queries)
        return x + (x @ self.down.T) @ self.up
