r"""The neck of "bag of tricks": one loss before a batch normalisation, another after it.

    L = before(−‖f_i − f_j‖) + after(neck(f))        f: features of the tower; search uses neck(f)

The published pair is a hardest-triplet loss on Euclidean distances before and identity classification after. There the
similarity that is trained by triplets is not the one that searches; to train a metric, put the triplet loss after the
neck too (see `NeckLoss`).
"""

from collections.abc import Callable

from jaxtyping import Float, Int
from torch import Tensor, nn

from gssf_plug.arguments import check_function, check_module
from gssf_plug.errors import ArgumentError
from gssf_plug.losses.embedding_loss import FeatureLoss, check_features, loss_of_features

__all__ = ["NeckLoss", "check_neck", "negative_distance"]

Score = Callable[[Tensor, Tensor], Tensor]


class NeckLoss(FeatureLoss):
    """Losses on both sides of a model's neck; the neck sees the whole batch of all processes.

    Args:
        neck: the model's own neck, `model.neck`: its parameters stay the model's.
        after: loss on the features behind the neck, under the model's similarity: `IdentityLoss`, or
            `WeightedSum(IdentityLoss(...), BatchHardTriplet())` to train a metric where it searches.
        before: loss on the features before the neck, under −‖a − b‖ of features that are not normalised; None (default)
            for none. Published: `BatchHardTriplet(margin=0.3)`.

    Raises:
        ArgumentError: it is called in evaluation mode, where the model's features are already those behind the neck.

    References:
        Luo et al., "Bag of tricks and a strong baseline for deep person re-identification", arXiv 1903.07071.

    Example:
        >>> import torch; from gssf_plug.features import BNNeck
        >>> from gssf_plug.losses import BatchHardTriplet, IdentityLoss
        >>> from gssf_plug.retrieval import OneTower
        >>> model = OneTower(nn.Linear(8, 6), neck=BNNeck(6))
        >>> loss = NeckLoss(model.neck, before=BatchHardTriplet(margin=0.3), after=IdentityLoss(6, 4))
        >>> features, labels = model.encode(torch.randn(8, 8)), torch.arange(8) % 4
        >>> loss(features, labels, model.score).shape
        torch.Size([])
    """

    def __init__(self, neck: nn.Module, *, after: nn.Module, before: nn.Module | None = None) -> None:
        super().__init__()
        check_module("neck", neck, "Give the model's own: model.neck.")
        check_module("after", after, "Such as IdentityLoss(dim, identities).")
        check_module("before", before, "Such as BatchHardTriplet().", optional=True)
        self.after = after
        self.before = before
        self._neck = (neck,)  # in a tuple, so that the model alone registers it and files hold it once

    @property
    def neck(self) -> nn.Module:
        """The model's neck."""
        return self._neck[0]

    def forward(self, features: Float[Tensor, "n dim"], labels: Int[Tensor, " n"], score: Score) -> Float[Tensor, ""]:
        """The sum of the two losses."""
        if not self.training:
            raise ArgumentError(
                "loss",
                "be called in training mode, where features come before the neck",
                "a call in evaluation mode",
                "Call train() on model and loss.",
            )
        check_features(features, labels, getattr(self.neck, "num_features", None))
        check_function("score", score, "Give the model's own: model.score.", takes=2)
        value = loss_of_features(self.after, self.neck(features), labels, score)
        if self.before is None:
            return value
        return value + loss_of_features(self.before, features, labels, negative_distance)


def negative_distance(a: Float[Tensor, "n dim"], b: Float[Tensor, "m dim"]) -> Float[Tensor, "n m"]:
    """−‖a_i − b_j‖ of all pairs, in float32 or better; the gradient at distance 0 is 0."""
    # ‖a - b‖² = ‖a‖² + ‖b‖² - 2⟨a, b⟩; the bound below keeps the gradient of √0 out
    squares = a.square().sum(-1)[:, None] + b.square().sum(-1) - 2 * a @ b.mT
    return -squares.clamp_min(1e-12).sqrt()


def check_neck(model: nn.Module, loss: nn.Module) -> None:
    """Raise `ArgumentError` where a model's neck would not be trained, or is not the loss's."""
    neck = getattr(model, "neck", None)
    used = [part.neck for part in loss.modules() if isinstance(part, NeckLoss)]
    if neck is not None and not any(other is neck for other in used):
        raise ArgumentError(
            "loss",
            "apply the model's neck",
            type(loss).__name__,
            "Use NeckLoss(model.neck, after=...), or put the neck into the tower as its projection.",
        )
