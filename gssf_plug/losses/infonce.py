r"""InfoNCE: a softmax over the batch, in both directions, with several positives per query.

    L = ½ (L_rows + L_columns)
    L_rows = mean_i mean_{p ∈ P(i)} −log( exp(α s_ip) / Σ_j exp(α s_ij) ),    α: learned scale

P(i) holds every positive of query i. With one positive each this is CLIP's loss. Queries without a positive are left
out of the mean (they still serve as negatives of the other direction). The softmax is invariant to adding a constant,
and α is bounded, so the metric cannot lower the loss by growing without limit alone.
"""

from collections.abc import Callable
from typing import ClassVar

import torch

from gssf_plug.arguments import checked_flag
from gssf_plug.losses.logit_scale import LearnedScale, checked_range
from gssf_plug.losses.pair_masks import Pairs
from gssf_plug.losses.row_loss import RowLoss, RowSum

__all__ = ["InfoNCE"]


class InfoNCE(RowLoss):
    """Softmax contrastive loss over all pairs of a batch.

    Args:
        scale: factor α on the scores at the start, the inverse of the temperature; default 1/0.07 ≈ 14.3 (CLIP's).
            Below about 1 the softmax over cosines is nearly flat.
        scale_range: smallest and largest value of α; default (1, 100).
        learned_scale: True (default) trains α; False keeps it.

    Shape:
        scores (N, M), relevance (N, M), exclude (N, M) -> scalar, float32 or better.

    Raises:
        ArgumentError: the scale is outside its range, or a mask has another shape or dtype.

    References:
        van den Oord et al., arXiv 1807.03748; several positives: Khosla et al., SupCon, arXiv 2004.11362 (L_out).

    Relations:
        `Hinge` looks at the hardest negative alone, and depends on the scale of scores.

    Example:
        >>> scores = torch.eye(3)
        >>> float(InfoNCE()(scores, scores > 0).detach()) < 1e-4
        True
    """

    weight: ClassVar[float] = 0.5

    def __init__(
        self,
        *,
        scale: float = 1 / 0.07,
        scale_range: tuple[float, float] = (1.0, 100.0),
        learned_scale: bool = True,
    ) -> None:
        super().__init__()
        learned_scale = checked_flag("learned_scale", learned_scale)
        self.scale = LearnedScale(scale, *checked_range(scale_range)).requires_grad_(learned_scale)

    def begin(self) -> Callable[[Pairs], RowSum]:
        """Surprise of each asking row, under the present scale."""
        scaled = self.scale.begin()
        return lambda pairs: _cross_entropy(pairs._replace(scores=scaled(pairs.scores)))


def _cross_entropy(pairs: Pairs) -> RowSum:
    counted = pairs.positive | pairs.negative
    logits = pairs.scores.masked_fill(~counted, float("-inf"))
    answered = pairs.positive.any(dim=1)
    logits = torch.where(answered[:, None], logits, 0.0)  # a row of -inf alone would be NaN, in its gradient too
    negative_log = -logits.log_softmax(dim=1)
    positives = pairs.positive.sum(dim=1).clamp_min(1)
    per_query = torch.where(pairs.positive, negative_log, 0.0).sum(dim=1) / positives
    return RowSum(per_query.sum(), answered.sum())
