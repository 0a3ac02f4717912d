r"""Triplet losses on a score matrix, mined by masks: at most N×N numbers are held, never N×N×N.

    BatchHardTriplet    mean_i            [ margin − min_{p ∈ P(i)} s_ip + max_{j ∈ N(i)} s_ij ]₊
    SemiHardTriplet     mean_{i, p ∈ P(i)} [ margin − s_ip + max_{j ∈ N(i): s_ij < s_ip} s_ij ]₊

A row asks; for one tower rows and columns are the same items. Rows without a positive or a negative are left out of the
mean. A margin fixes the scale of scores, so the fair baseline of a metric here is cosine with a learned scale.
"""

from collections.abc import Callable
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gssf_plug.arguments import checked_flag, checked_number
from gssf_plug.losses.logit_scale import LearnedScale
from gssf_plug.losses.pair_masks import Pairs
from gssf_plug.losses.row_loss import RowLoss, RowSum

__all__ = ["BatchHardTriplet", "SemiHardTriplet"]


class _Triplet(RowLoss):
    """Margin, scale and mean; subclasses choose the triplets."""

    both_sides: ClassVar[bool] = False

    def __init__(self, *, margin: float | None = 0.3, learned_scale: bool = False) -> None:
        super().__init__()
        if margin is not None:
            rule, remedy = (
                "be None or a positive number",
                "The usual margin is 0.3; None uses the soft margin log(1 + exp(x)).",
            )
            margin = checked_number("margin", margin, rule, remedy, lambda number: number > 0)
        learned_scale = checked_flag("learned_scale", learned_scale)
        self.margin = margin
        self.scale = LearnedScale(1.0, 0.01, 100.0) if learned_scale else None

    def begin(self) -> Callable[[Pairs], RowSum]:
        """Violations of the triplets of rows, under the present scale."""
        scaled = self.scale.begin() if self.scale is not None else None

        def terms(pairs: Pairs) -> RowSum:
            pairs = pairs if scaled is None else pairs._replace(scores=scaled(pairs.scores))
            positive, negative = self.choose(pairs)
            count = torch.tensor(len(positive), device=positive.device)
            return RowSum(self._violations(negative - positive).sum(), count)

        return terms

    def _violations(self, difference: Float[Tensor, " triplets"]) -> Float[Tensor, " triplets"]:
        if self.margin is None:
            return nn.functional.softplus(difference)
        return (difference + self.margin).relu()

    def choose(self, pairs: Pairs) -> tuple[Float[Tensor, " triplets"], Float[Tensor, " triplets"]]:
        """Scores of the positive and of the negative of every triplet."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"margin={self.margin}"


class BatchHardTriplet(_Triplet):
    """For every item its farthest positive and its nearest negative.

    Args:
        margin: distance that a positive must keep from a negative, in units of the score and above 0; default 0.3
            (BoT). None takes the soft margin log(1 + exp(x)).
        learned_scale: True multiplies the scores by a learned factor, which is 1 at the start. Default False.

    Shape:
        scores (N, M), relevance (N, M), exclude (N, M) -> scalar, float32 or better.

    Raises:
        ArgumentError: the margin is not positive, or a mask has another shape or dtype.

    References:
        Hermans et al., "In defense of the triplet loss", arXiv 1703.07737.

    Example:
        >>> scores = torch.tensor([[1.0, 0.6, 0.5], [0.6, 1.0, 0.2], [0.5, 0.2, 1.0]])
        >>> labels = torch.tensor([0, 0, 1])
        >>> loss = BatchHardTriplet()(scores, labels[:, None] == labels, exclude=torch.eye(3).bool())
        >>> round(loss.item(), 4)  # mean of 0.3 - 0.6 + 0.5 and 0; the third item has no positive
        0.1
    """

    def choose(self, pairs: Pairs) -> tuple[Float[Tensor, " triplets"], Float[Tensor, " triplets"]]:
        """One triplet per row that has both."""
        complete = pairs.positive.any(dim=1) & pairs.negative.any(dim=1)
        farthest = pairs.scores.masked_fill(~pairs.positive, float("inf")).argmin(dim=1, keepdim=True)
        nearest = pairs.scores.masked_fill(~pairs.negative, float("-inf")).argmax(dim=1, keepdim=True)
        # picked by index, so that the gradient goes to the two scores alone
        both = [pairs.scores.gather(1, index)[complete, 0] for index in (farthest, nearest)]
        return both[0], both[1]


class SemiHardTriplet(_Triplet):
    """For every positive pair the nearest negative that is still farther than the positive.

    A pair without such a negative gives no triplet. FaceNet's "semi-hard" with the hardest choice; a search in the
    sorted negatives of each row finds it.

    Args:
        margin: distance that a positive must keep from a negative, as in `BatchHardTriplet`.
        learned_scale: True multiplies the scores by a learned factor, as in `BatchHardTriplet`.

    Shape:
        scores (N, M), relevance (N, M), exclude (N, M) -> scalar, float32 or better.

    Raises:
        ArgumentError: the margin is not positive, or a mask has another shape or dtype.

    References:
        Schroff et al., FaceNet, arXiv 1503.03832.
    """

    def choose(self, pairs: Pairs) -> tuple[Float[Tensor, " triplets"], Float[Tensor, " triplets"]]:
        """One triplet per positive pair that has a negative below it."""
        negatives = pairs.scores.masked_fill(~pairs.negative, float("-inf"))
        ordered, order = negatives.detach().sort(dim=1)
        below = torch.searchsorted(ordered, pairs.scores.detach().contiguous())  # how many of the row's are smaller
        # in sorted order the last of the smaller ones is the nearest below the positive
        nearest = order.gather(1, (below - 1).clamp_min(0))
        # what is no negative was sorted to the front as -inf and is smaller, too: more than these must be
        rows, columns = (pairs.positive & (below > (~pairs.negative).sum(dim=1, keepdim=True))).nonzero(as_tuple=True)
        return pairs.scores[rows, columns], pairs.scores[rows, nearest[rows, columns]]
