r"""Sigmoid: every pair of a batch is a binary question of its own, as in SigLIP.

    L = −1/N Σ_i Σ_j log σ( z_ij (α s_ij + β) ),      z_ij = 1 for a positive pair, −1 for a negative one

There is no softmax, so a pair does not depend on the others of the batch, and several positives need no rule.
"""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import nn

from gssf_plug.arguments import checked_flag
from gssf_plug.losses.logit_scale import LearnedScale, checked_range
from gssf_plug.losses.pair_masks import Pairs
from gssf_plug.losses.row_loss import RowLoss, RowSum

__all__ = ["Sigmoid"]


class Sigmoid(RowLoss):
    """Binary cross-entropy over all pairs, summed over the gallery and averaged over the queries.

    Args:
        learned: True trains α and β, from α = 10 and β = −10 (SigLIP's). False (default) takes the scores as logits,
            for a `DualEncoder`, whose model has α and β.
        scale_range: smallest and largest value of α; default (0.1, 1000).

    Shape:
        scores (N, M), relevance (N, M), exclude (N, M) -> scalar, float32 or better.

    Raises:
        ArgumentError: a mask has another shape or dtype.

    References:
        Zhai et al., "Sigmoid loss for language image pre-training", arXiv 2303.15343.

    Relations:
        `InfoNCE` compares a pair with the others of its row.

    Example:
        >>> round(Sigmoid()(torch.zeros(2, 2), torch.eye(2, dtype=torch.bool)).item(), 4)  # four times log 2, over two
        1.3863
    """

    both_sides: ClassVar[bool] = False

    def __init__(self, *, learned: bool = False, scale_range: tuple[float, float] = (0.1, 1000.0)) -> None:
        super().__init__()
        checked_flag("learned", learned)
        self.scale = LearnedScale(10.0, *checked_range(scale_range)) if learned else None
        self.bias = nn.Parameter(torch.tensor([-10.0])) if learned else None

    def begin(self) -> Callable[[Pairs], RowSum]:
        """Surprise of each pair of a row, under the present scale and bias."""
        scaled = self.scale.begin() if self.scale is not None else None

        def terms(pairs: Pairs) -> RowSum:
            logits = pairs.scores if scaled is None else scaled(pairs.scores)
            logits = logits if self.bias is None else logits + self.bias
            surprise = nn.functional.softplus(torch.where(pairs.positive, -logits, logits))
            counted = pairs.positive | pairs.negative
            return RowSum(torch.where(counted, surprise, 0.0).sum(), torch.tensor(len(logits), device=logits.device))

        return terms
