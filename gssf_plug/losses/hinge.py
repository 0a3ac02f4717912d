r"""Hinge: a positive must beat negatives by a margin, in both directions. The loss of the paper's family (VSE++).

    L = mean over positive pairs (i, p) of
        [ margin − s_ip + max_{j ∈ N(i)} s_ij ]₊ + [ margin − s_ip + max_{k ∈ N(p)} s_kp ]₊

N(i) and N(p) hold the negatives of the row and of the column: pairs with the same id never count as negatives. For the
first `warmup_steps` the maximum is replaced by the sum over negatives, which is gentler on random features (a hardest
negative collapses training there). With one positive per row, N · L is VSE++'s sum.

A margin fixes the scale of scores: a metric may gain by scaling alone. Its fair baseline is therefore cosine with
`learned_scale=True`, not cosine.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gssf_plug.arguments import checked_flag, checked_number
from gssf_plug.losses.logit_scale import LearnedScale, checked_range
from gssf_plug.losses.pair_masks import Pairs
from gssf_plug.losses.row_loss import RowLoss, RowSum

__all__ = ["Hinge"]


class Hinge(RowLoss):
    """Bidirectional hinge with hardest negatives.

    Args:
        margin: distance that a positive must keep from a negative, in units of the score and above 0; default 0.2
            (VSE++, SCAN, SGRAF, RCAR).
        warmup_steps: number of calls in training mode that sum over all negatives before the hardest alone counts;
            default 0. The counter is saved with the module, so a resumed run goes on where it was. With gradient
            accumulation one optimizer step is several calls.
        learned_scale: True multiplies the scores by a learned factor, which is 1 at the start. Default False.
        scale_range: smallest and largest value of that factor; default (0.01, 100).

    Shape:
        scores (N, M), relevance (N, M), exclude (N, M) -> scalar, float32 or better.

    Raises:
        ArgumentError: the margin or the warm-up is outside its range, or a mask has another shape or dtype.

    References:
        Faghri et al., VSE++, arXiv 1707.05612; warm-up: Chen et al., VSE∞, arXiv 2011.04305.

    Relations:
        `InfoNCE` weighs all negatives, and has its own scale.

    Example:
        >>> scores = torch.tensor([[0.9, 0.5], [0.1, 0.6]])
        >>> round(Hinge()(scores, torch.eye(2, dtype=torch.bool)).item(), 4)
        0.05
    """

    calls: Int[Tensor, ""]

    def __init__(
        self,
        *,
        margin: float = 0.2,
        warmup_steps: int = 0,
        learned_scale: bool = False,
        scale_range: tuple[float, float] = (0.01, 100.0),
    ) -> None:
        super().__init__()
        remedy = "The usual margin for cosines is 0.2."
        self.margin = checked_number("margin", margin, "be a positive number", remedy, lambda number: number > 0)
        rule, remedy = "be at least 0 and whole", "Use 0 for hardest negatives."
        steps = checked_number(
            "warmup_steps", warmup_steps, rule, remedy, lambda number: number >= 0 and number % 1 == 0
        )
        self.warmup_steps = int(steps)
        learned_scale = checked_flag("learned_scale", learned_scale)
        self.scale = LearnedScale(1.0, *checked_range(scale_range)) if learned_scale else None
        self.register_buffer("calls", torch.tensor(0))

    def begin(self) -> Callable[[Pairs], RowSum]:
        """Hinges of each positive pair of a row, by the present step of the warm-up."""
        scaled = self.scale.begin() if self.scale is not None else None
        violation = self._sum_of_hinges if self._warming_up() else self._hardest_hinge

        def terms(pairs: Pairs) -> RowSum:
            pairs = pairs if scaled is None else pairs._replace(scores=scaled(pairs.scores))
            return RowSum(violation(pairs), pairs.positive.sum())

        return terms

    def _warming_up(self) -> bool:
        if not self.training or self.warmup_steps == 0:
            return False
        self.calls += 1
        return int(self.calls) <= self.warmup_steps

    def _hardest_hinge(self, pairs: Pairs) -> Float[Tensor, ""]:
        # a row without negatives has -inf here, whose hinge is 0
        hardest = pairs.scores.masked_fill(~pairs.negative, float("-inf")).amax(dim=1, keepdim=True)
        hinges = (self.margin - pairs.scores + hardest).relu()
        return torch.where(pairs.positive, hinges, 0.0).sum()

    def _sum_of_hinges(self, pairs: Pairs) -> Float[Tensor, ""]:
        rows, columns = pairs.positive.nonzero(as_tuple=True)
        # one row of hinges for each positive pair, against every negative of its query
        positive = pairs.scores[rows, columns][:, None]
        hinges = (self.margin - positive + pairs.scores[rows]).relu()
        return torch.where(pairs.negative[rows], hinges, 0.0).sum()

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"margin={self.margin}, warmup_steps={self.warmup_steps}"
