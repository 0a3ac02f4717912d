r"""Sigmoid: every pair of a batch is a binary question of its own, as in SigLIP.

    L = −1/N Σ_i Σ_j log σ( z_ij (α s_ij + β) ),      z_ij = 1 for a positive pair, −1 for a negative one

There is no softmax, so a pair does not depend on the others of the batch, and several positives need no rule.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from gssf_plug.losses.pairs import sort_pairs
from gssf_plug.losses.scale import LearnedScale

__all__ = ["Sigmoid"]


class Sigmoid(nn.Module):
    """Binary cross-entropy over all pairs, summed over the gallery and averaged over the queries.

    Args:
        learned: train α and β, from α = 10 and β = −10 (SigLIP's); False (default) takes the scores as logits, for a
            `DualEncoder`, whose model has α and β.
        scale_range: bounds of α, default (0.1, 1000).

    Shape:
        scores (N, M), relevance (N, M), forbidden (N, M) -> scalar, float32 or better.

    Raises:
        ArgumentError: masks of another shape or dtype.

    References:
        Zhai et al., "Sigmoid loss for language image pre-training", arXiv 2303.15343.

    Relations:
        `InfoNCE` compares a pair with the others of its row.

    Example:
        >>> round(Sigmoid()(torch.zeros(2, 2), torch.eye(2, dtype=torch.bool)).item(), 4)  # four times log 2, over two
        1.3863
    """

    def __init__(self, *, learned: bool = False, scale_range: tuple[float, float] = (0.1, 1000.0)) -> None:
        super().__init__()
        self.scale = LearnedScale(10.0, *scale_range) if learned else None
        self.bias = nn.Parameter(torch.tensor(-10.0)) if learned else None

    def forward(
        self,
        scores: Float[Tensor, "n m"],
        relevance: Bool[Tensor, "n m"],
        *,
        forbidden: Bool[Tensor, "n m"] | None = None,
    ) -> Float[Tensor, ""]:
        """The loss of one batch; see the class."""
        pairs = sort_pairs(scores, relevance, forbidden)
        logits = pairs.scores if self.scale is None else pairs.scores * self.scale.factor().to(pairs.scores.dtype)
        logits = logits if self.bias is None else logits + self.bias
        surprise = nn.functional.softplus(torch.where(pairs.positive, -logits, logits))
        counted = pairs.positive | pairs.negative
        return torch.where(counted, surprise, 0.0).sum() / max(1, len(scores))
