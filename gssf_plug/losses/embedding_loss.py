r"""Losses that read features and labels of one tower, not scores alone: classifiers, and sums of several losses.

    loss(features, labels, score) -> scalar          score(features, features) -> (N, N), the model's similarity

Other losses of this room see a score matrix. An `EmbeddingLoss` is told apart by its class, and RetrievalTrainer hands
it the features of the whole batch of all processes.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gssf_plug.arguments import (
    LARGEST,
    check_function,
    checked_count,
    checked_number,
    described,
    holds_floats,
    holds_whole_numbers,
)
from gssf_plug.errors import ArgumentError
from gssf_plug.losses.chunked import Score, loss_of_pairs

__all__ = ["EmbeddingLoss", "FeatureLoss", "IdentityLoss", "Score", "WeightedSum", "loss_of_features"]


class EmbeddingLoss(nn.Module):
    """A loss on features. Subclasses write `forward(features, labels, score)`."""

    def forward(self, features: Float[Tensor, "n dim"], labels: Int[Tensor, " n"], score: Score) -> Float[Tensor, ""]:
        """The loss of one batch.

        Args:
            features: one row for each item, (N, D), not normalised.
            labels: identity or class of each item, (N,).
            score: function from two sets of rows to all their similarities: the model's metric, or cosine.
        """
        raise NotImplementedError


FeatureLoss = EmbeddingLoss  # its older name


class IdentityLoss(EmbeddingLoss):
    r"""Classify the identities of the training set, with label smoothing: the ID loss of re-identification.

    L = mean_i −Σ_c q_c log softmax(V f_i)_c,    q = (1 − ε) one-hot + ε / C

    Put `BNNeck` before it, as the projection of the tower: the classifier has no bias and sees features around zero.

    Args:
        dim: width D of the features.
        identities: number C of identities; labels are 0 … C-1.
        smoothing: share ε of the target that is spread over all identities, 0 ≤ ε < 1; default 0.1.

    Raises:
        ArgumentError: the smoothing is outside its range, or a label is outside 0 … C-1.

    References:
        Luo et al., "Bag of tricks", arXiv 1903.07071; Szegedy et al., arXiv 1512.00567.
    """

    def __init__(self, dim: int, identities: int, *, smoothing: float = 0.1) -> None:
        super().__init__()
        dim = checked_count("dim", dim, "Give the width of the features.", most=LARGEST)
        remedy = "Give how many identities the training set has."
        identities = checked_count("identities", identities, remedy, most=LARGEST)
        rule, remedy = "be at least 0 and below 1", "The usual value is 0.1."
        self.identities = identities
        self.smoothing = checked_number("smoothing", smoothing, rule, remedy, lambda number: 0 <= number < 1)
        self.classifier = nn.Linear(dim, identities, bias=False)
        nn.init.normal_(self.classifier.weight, std=0.001)

    def forward(self, features: Float[Tensor, "n dim"], labels: Int[Tensor, " n"], score: Score) -> Float[Tensor, ""]:
        """Cross-entropy over identities, in the dtype that holds features and weights; `score` is not used."""
        check_features(features, labels, self.classifier.in_features)
        labels = labels.long()
        outside = (labels < 0) | (labels >= self.identities)
        if bool(outside.any()):
            rule = f"lie in 0 … {self.identities - 1}, one number per training identity"
            raise ArgumentError("labels", rule, int(labels[outside][0]), "Renumber the training identities from 0.")
        weight = self.classifier.weight
        if features.dtype != weight.dtype and not torch.is_autocast_enabled(features.device.type):
            # a half-precision encoder under a classifier in float32: in the dtype that holds both
            common = torch.promote_types(features.dtype, weight.dtype)
            features, weight = features.to(common), weight.to(common)
        logits = nn.functional.linear(features, weight)
        return nn.functional.cross_entropy(logits, labels, label_smoothing=self.smoothing)

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"identities={self.identities}, smoothing={self.smoothing}"


class WeightedSum(EmbeddingLoss):
    """Several losses at once, on features or on scores: Σ weight · loss.

    Args:
        losses: losses to add, each an `EmbeddingLoss` or a loss on scores.
        weights: factor of each loss; None (default) takes 1 for all.

    Raises:
        ArgumentError: there is no loss, or the number of weights is another one.

    Example:
        >>> from gssf_plug import GSSFMetric
        >>> from gssf_plug.losses import BatchHardTriplet
        >>> loss = WeightedSum(IdentityLoss(8, 3), BatchHardTriplet(), weights=[1.0, 0.5])
        >>> features, labels = torch.randn(6, 8), torch.tensor([0, 0, 1, 1, 2, 2])
        >>> loss(features, labels, GSSFMetric(8, block_size=4)).shape  # the metric scores all pairs
        torch.Size([])
    """

    def __init__(self, *losses: nn.Module, weights: Sequence[float] | None = None) -> None:
        super().__init__()
        for loss in losses:
            if not isinstance(loss, nn.Module):
                remedy = "Give the loss objects themselves."
                raise ArgumentError("losses", "be modules of torch.nn", type(loss).__name__, remedy)
        listed = weights is None or isinstance(weights, Sequence)
        if not losses or not listed or (weights is not None and len(weights) != len(losses)):
            count = "no" if weights is None else len(weights) if listed else f"a {type(weights).__name__} as"
            got = f"{len(losses)} losses and {count} weights"
            raise ArgumentError(
                "weights", "be as many as the losses, of which there is at least one", got, "Pair them."
            )
        self.losses = nn.ModuleList(losses)
        rule, remedy = "hold a finite number for each loss", "The default is 1 for all."
        given = weights if weights is not None else (1.0,) * len(losses)
        self.weights = tuple(checked_number("weights", one, rule, remedy, lambda number: True) for one in given)

    def forward(self, features: Float[Tensor, "n dim"], labels: Int[Tensor, " n"], score: Score) -> Float[Tensor, ""]:
        """The weighted sum."""
        check_features(features, labels)
        check_function("score", score, "Give the metric.", takes=2)
        parts = [loss_of_features(loss, features, labels, score) for loss in self.losses]
        return torch.stack([weight * part for weight, part in zip(self.weights, parts, strict=True)]).sum()


def check_features(features: object, labels: object, width: int | None = None) -> None:
    """Features of one tower with a label each.

    Raises:
        ArgumentError: the features are no floating-point matrix with values or have another width than `width`, or the
            labels are no whole numbers.
    """
    if not holds_floats(features) or features.ndim != 2:
        rule, remedy = "be a floating-point matrix of features N×D", "Give one row per item."
        raise ArgumentError("features", rule, described(features), remedy)
    if width is not None and features.shape[1] != width:
        remedy = "Build the loss with the width of the features."
        raise ArgumentError("features", f"have {width} channels", described(features), remedy)
    rule = f"hold one whole number per row of `features` ({len(features)})"
    if not holds_whole_numbers(labels) or labels.shape != features.shape[:1]:
        raise ArgumentError("labels", rule, described(labels), "Number them.")
    if labels.device != features.device:
        rule = f"be on the device of `features`, {features.device}"
        raise ArgumentError("labels", rule, labels.device, "Move them with .to(features.device).")


def loss_of_features(
    loss: nn.Module, features: Float[Tensor, "n dim"], labels: Int[Tensor, " n"], score: Score
) -> Float[Tensor, ""]:
    """`loss` of one tower's features, whether it reads features or scores; an item is not compared with itself."""
    if isinstance(loss, EmbeddingLoss):
        return loss(features, labels, score)
    return loss_of_pairs(loss, score, features, labels, features, labels, itself=True)
