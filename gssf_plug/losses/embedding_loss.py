r"""Losses that read features and labels of one tower, not scores alone: classifiers, and sums of several losses.

    loss(features, labels, score) -> scalar          score(features, features) -> (N, N), the model's similarity

Other losses of this room see a score matrix. An `EmbeddingLoss` is told apart by its class, and RetrievalTrainer hands
it the features of the whole batch of all processes.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gssf_plug.errors import ArgumentError
from gssf_plug.losses.chunked import Score, loss_of_pairs
from gssf_plug.metric.options import checked_count

__all__ = ["EmbeddingLoss", "FeatureLoss", "IdentityLoss", "Score", "WeightedSum", "loss_of_features"]


class EmbeddingLoss(nn.Module):
    """A loss on features. Subclasses write `forward(features, labels, score)`."""

    def forward(self, features: Float[Tensor, "n dim"], labels: Int[Tensor, " n"], score: Score) -> Float[Tensor, ""]:
        """The loss of one batch.

        Args:
            features: one row per item, not normalised.
            labels: identity or class of each.
            score: the similarity of the model, learned or cosine.
        """
        raise NotImplementedError


FeatureLoss = EmbeddingLoss  # its older name


class IdentityLoss(EmbeddingLoss):
    r"""Classify the identities of the training set, with label smoothing: the ID loss of re-identification.

    L = mean_i −Σ_c q_c log softmax(V f_i)_c,    q = (1 − ε) one-hot + ε / C

    Put `BNNeck` before it, as the projection of the tower: the classifier has no bias and sees features around zero.

    Args:
        dim: width of the features.
        identities: number C of identities; labels are 0 … C-1.
        smoothing: ε, 0 … 1 (not 1); default 0.1.

    Raises:
        ArgumentError: a smoothing outside its range; a label outside 0 … C-1.

    References:
        Luo et al., "Bag of tricks", arXiv 1903.07071; Szegedy et al., arXiv 1512.00567.
    """

    def __init__(self, dim: int, identities: int, *, smoothing: float = 0.1) -> None:
        super().__init__()
        dim = checked_count("dim", dim, "Give the width of the features.")
        identities = checked_count("identities", identities, "Give how many identities the training set has.")
        if not isinstance(smoothing, int | float) or not 0 <= smoothing < 1:
            raise ArgumentError("smoothing", "be at least 0 and below 1", repr(smoothing), "The usual value is 0.1.")
        self.identities = identities
        self.smoothing = smoothing
        self.classifier = nn.Linear(dim, identities, bias=False)
        nn.init.normal_(self.classifier.weight, std=0.001)

    def forward(self, features: Float[Tensor, "n dim"], labels: Int[Tensor, " n"], score: Score) -> Float[Tensor, ""]:
        """Cross-entropy over identities; `score` is not used."""
        if labels.is_floating_point() or labels.shape != features.shape[:1]:
            got = f"{labels.dtype} of shape {tuple(labels.shape)}"
            raise ArgumentError(
                "labels", f"hold one whole number per row of `features` ({len(features)})", got, "Number them."
            )
        outside = (labels < 0) | (labels >= self.identities)
        if bool(outside.any()):
            rule = f"lie in 0 … {self.identities - 1}, one number per training identity"
            raise ArgumentError("labels", rule, int(labels[outside][0]), "Renumber the training identities from 0.")
        logits = self.classifier(features)
        return nn.functional.cross_entropy(logits, labels, label_smoothing=self.smoothing)

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"identities={self.identities}, smoothing={self.smoothing}"


class WeightedSum(EmbeddingLoss):
    """Several losses at once, on features or on scores: Σ weight · loss.

    Args:
        losses: each a `EmbeddingLoss` or a loss on scores.
        weights: one per loss; default all 1.

    Raises:
        ArgumentError: no loss, or not as many weights.

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
        odd = next((loss for loss in losses if not isinstance(loss, nn.Module)), None)
        if odd is not None:
            raise ArgumentError(
                "losses", "be modules of torch.nn", type(odd).__name__, "Give the loss objects themselves."
            )
        if not losses or (weights is not None and len(weights) != len(losses)):
            got = f"{len(losses)} losses and {'no' if weights is None else len(weights)} weights"
            raise ArgumentError(
                "weights", "be as many as the losses, of which there is at least one", got, "Pair them."
            )
        self.losses = nn.ModuleList(losses)
        self.weights = tuple(weights) if weights is not None else (1.0,) * len(losses)

    def forward(self, features: Float[Tensor, "n dim"], labels: Int[Tensor, " n"], score: Score) -> Float[Tensor, ""]:
        """The weighted sum."""
        parts = [loss_of_features(loss, features, labels, score) for loss in self.losses]
        return torch.stack([weight * part for weight, part in zip(self.weights, parts, strict=True)]).sum()


def loss_of_features(
    loss: nn.Module, features: Float[Tensor, "n dim"], labels: Int[Tensor, " n"], score: Score
) -> Float[Tensor, ""]:
    """`loss` of one tower's features, whether it reads features or scores; an item is not compared with itself."""
    if isinstance(loss, EmbeddingLoss):
        return loss(features, labels, score)
    return loss_of_pairs(loss, score, features, labels, features, labels, itself=True)
