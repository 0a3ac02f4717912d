"""What the ranking functions accept, checked once before anything is scored, and the scores they rank by.

Scores are computed in float32 or better whatever the features' dtype: in half precision thousands of items would tie.
"""

from functools import reduce

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gssf_plug.errors import ArgumentError
from gssf_plug.metric.metric import GSSFMetric

__all__ = ["check_features", "checked_labels", "checked_metric", "finite_scores", "promoted"]

FINITE_CHUNK = 65_536  # rows that one check of finiteness reads at a time


def check_features(name: str, features: Tensor, metric: GSSFMetric | None, width: int | None = None) -> None:
    """Refuse what cannot be ranked.

    Args:
        name: the argument as the caller writes it.
        features: must be N×D with N ≥ 1, floating point and finite.
        metric: its `dim` must be D.
        width: D of the other side, where it is known.

    Raises:
        ArgumentError: the first rule that is broken, with the first bad row.
    """
    if not isinstance(features, Tensor):
        raise ArgumentError(name, "be a torch tensor", type(features).__name__, "Convert it with torch.as_tensor(...).")
    if features.ndim != 2 or not features.is_floating_point():
        got = f"{features.dtype} of shape {tuple(features.shape)}"
        raise ArgumentError(name, "be a floating-point matrix of features N×D", got, "Give one row per item.")
    if len(features) == 0:
        raise ArgumentError(name, "hold at least one item", "none", "Check the loader or the split that made it.")
    if metric is not None and features.shape[1] != metric.dim:
        got = f"shape {tuple(features.shape)}"
        remedy = "Build GSSFMetric with the width of the features, or project them."
        raise ArgumentError(name, f"have the metric's {metric.dim} channels", got, remedy)
    if width is not None and features.shape[1] != width:
        got = f"shape {tuple(features.shape)}"
        raise ArgumentError(name, f"have the other side's {width} channels", got, "Project both to one width.")
    for start, chunk in enumerate(features.split(FINITE_CHUNK)):
        finite = chunk.isfinite().all(dim=1)
        if not bool(finite.all()):
            row = start * FINITE_CHUNK + int((~finite).nonzero()[0])
            raise ArgumentError(name, "be finite", f"NaN or infinity in row {row}", "Find what made it, or drop it.")


def checked_labels(name: str, labels: Int[Tensor, " n"] | None, features: Tensor, of: str) -> Int[Tensor, " n"]:
    """`labels` on the features' device, one whole number per row of the argument `of`.

    Raises:
        ArgumentError: missing, of another length, or not whole numbers.
    """
    rule = f"hold one whole number per row of `{of}` ({len(features)})"
    if labels is None:
        raise ArgumentError(name, rule, "None", "Give it; the protocol is not defined without it.")
    tensor = torch.as_tensor(labels)
    if tensor.shape != (len(features),) or tensor.is_floating_point() or tensor.is_complex():
        remedy = "Features and labels must come from the same items, in the same order."
        raise ArgumentError(name, rule, f"{tensor.dtype} of shape {tuple(tensor.shape)}", remedy)
    return tensor.long().to(features.device)


def checked_metric(metric: GSSFMetric | None, features: Tensor) -> GSSFMetric:
    """`metric`, or a neutral one (cosine) on the features' device where it is None.

    Raises:
        ArgumentError: a weight is NaN or infinite; its scores would rank nothing.
    """
    if metric is None:
        return GSSFMetric(features.shape[1], terms=("diagonal",)).to(features.device)
    for name, weight in metric.named_parameters():
        if not bool(weight.isfinite().all()):
            remedy = "Training diverged: go back to an earlier checkpoint and lower the metric's learning rate."
            raise ArgumentError("metric", "have finite weights", f"NaN or infinity in '{name}'", remedy)
    return metric


def promoted(features: Float[Tensor, "n dim"], *others: Tensor) -> Float[Tensor, "n dim"]:
    """The features in float32, or in float64 where they or `others`, which they are scored with, are that."""
    dtypes = [one.dtype for one in (features, *others)]
    return features.to(reduce(torch.promote_types, dtypes, torch.float32))


def finite_scores(scores: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
    """The scores; a NaN would lose every comparison and so rank everything first.

    Raises:
        ArgumentError: one is NaN or infinite, which finite features give where a product overflows.
    """
    if not bool(scores.sum().isfinite()) and not bool(scores.isfinite().all()):
        remedy = "Normalise the features (GSSFMetric does by default), or mend what rescored them."
        raise ArgumentError("metric", "give finite scores", "NaN or infinity", remedy)
    return scores
