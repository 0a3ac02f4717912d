r"""dL/dS, the gradient of a loss with respect to a matrix of scores, in closed form where there is one.

    InfoNCE    α/2 · [ (P − T) / rows that ask + (Q − V) / columns that ask ]       P, Q: softmax over rows, columns
    Hinge      −1/p at a positive, +1/p at the hardest negative, for each violated margin of p positive pairs

T and V hold 1/positives of the row or column at each positive pair. Any other loss, and these two with options that the
formulas leave out, are asked through autograd, over the scores alone. Whoever has scores S = F·Yᵀ gets the gradient of
F by one more product, dL/dS · Y: no graph holds the matrix.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from gssf_plug.losses.hinge import Hinge
from gssf_plug.losses.infonce import InfoNCE
from gssf_plug.losses.row_loss import mask_name

__all__ = ["ListedPairs", "score_gradient"]


class ListedPairs(NamedTuple):
    """What a score matrix knows of its pairs, as lists.

    Args:
        rows: row of each positive pair; no pair twice, none of them left out.
        columns: column of each pair.
        left_out: places of the pairs that count neither way, counted through all rows.
    """

    rows: Int[Tensor, " pairs"]
    columns: Int[Tensor, " pairs"]
    left_out: Int[Tensor, " out"]

    def to(self, device: torch.device) -> "ListedPairs":
        """The same pairs, on another device."""
        return ListedPairs(*(part.to(device) for part in self))

    def places(self, width: int) -> Int[Tensor, " pairs"]:
        """Numbers of the positives in a flattened matrix of so many columns."""
        return self.rows * width + self.columns

    def masks(self, shape: torch.Size) -> tuple[Bool[Tensor, "n m"], Bool[Tensor, "n m"] | None]:
        """Positives, and what is left out; None where that is nothing."""
        known = torch.zeros(shape, dtype=torch.bool, device=self.rows.device)
        known[self.rows, self.columns] = True
        if not len(self.left_out):
            return known, None
        left_out = torch.zeros_like(known)
        left_out.view(-1)[self.left_out] = True
        return known, left_out


def score_gradient(loss: nn.Module, scores: Float[Tensor, "n m"], pairs: ListedPairs) -> Float[Tensor, "n m"]:
    """dL/dS of one batch; what the loss itself learns gets its gradient as by `backward`.

    Args:
        loss: called as `loss(scores, relevance, exclude=mask)` where it has no formula.
        scores: scores of N queries with M items, in float32 or better; their own graph is not asked for.
        pairs: which of these pairs belong together, and which count neither way.
    """
    scores = scores.detach()
    if type(loss) is InfoNCE:  # a subclass may have another formula
        return _of_softmax(loss, scores, pairs)
    if type(loss) is Hinge and loss.scale is None and loss.warmup_steps == 0:
        return _of_hinge(loss.margin, scores, pairs)
    return _by_autograd(loss, scores, pairs)


def _of_softmax(loss: InfoNCE, scores: Float[Tensor, "n m"], pairs: ListedPairs) -> Float[Tensor, "n m"]:
    factor = loss.scale.factor().detach()
    scaled = scores * factor
    # far below every score, and finite: a row that is left out as a whole stays a number
    scaled.view(-1)[pairs.left_out] = torch.finfo(scaled.dtype).min / 2
    asked = (
        torch.bincount(pairs.rows, minlength=len(scores)),
        torch.bincount(pairs.columns, minlength=scores.shape[1]),
    )
    # half the loss for each side, shared by its rows that have a positive; the others get 0
    shares = [(counts > 0) * (0.5 * factor / (counts > 0).sum().clamp_min(1)).to(scaled.dtype) for counts in asked]
    right = [share / counts.clamp_min(1) for share, counts in zip(shares, asked, strict=True)]
    # d/dS of log Σ exp is the softmax; below, each row's positives take their share of 1 from it
    gradient = scaled.softmax(1).mul_(shares[0][:, None]).addcmul_(scaled.softmax(0), shares[1])
    targets = right[0].index_select(0, pairs.rows) + right[1].index_select(0, pairs.columns)
    gradient.view(-1).index_add_(0, pairs.places(scores.shape[1]), targets.to(gradient.dtype), alpha=-1)
    learned = loss.scale.log_scale
    if learned.requires_grad:
        own = (gradient * scores).sum().to(learned.dtype).reshape(learned.shape)  # dL/dθ, α = e^θ
        learned.grad = own if learned.grad is None else learned.grad + own
    return gradient


def _of_hinge(margin: float, scores: Float[Tensor, "n m"], pairs: ListedPairs) -> Float[Tensor, "n m"]:
    (count, width), places = scores.shape, pairs.places(scores.shape[1])
    positives = scores.reshape(-1).index_select(0, places)
    negatives = scores.clone()
    negatives.view(-1)[places] = float("-inf")
    negatives.view(-1)[pairs.left_out] = float("-inf")
    gradient, share = torch.zeros_like(scores), 1 / max(1, len(places))
    flat, at = gradient.view(-1), (pairs.rows, pairs.columns)
    for side, length in enumerate((count, width)):
        hardest, where = negatives.max(dim=1 - side)
        violated = (margin - positives + hardest.index_select(0, at[side]) > 0).to(scores.dtype) * share
        flat.index_add_(0, places, violated, alpha=-1)
        own = torch.arange(length, device=scores.device)
        hit = own * width + where if side == 0 else where * width + own
        flat.index_add_(0, hit, torch.zeros_like(hardest).index_add_(0, at[side], violated))
    return gradient


def _by_autograd(loss: nn.Module, scores: Float[Tensor, "n m"], pairs: ListedPairs) -> Float[Tensor, "n m"]:
    with torch.enable_grad():
        leaf = scores.requires_grad_()
        known, left_out = pairs.masks(scores.shape)
        loss(leaf, known, **{mask_name(loss): left_out}).backward()
    return torch.zeros_like(scores) if leaf.grad is None else leaf.grad
