"""What the ranking functions accept, checked once before anything is scored, and the scores they rank by.

Scores are computed in float32 or better whatever the features' dtype: in half precision thousands of items would tie.
"""

from collections.abc import Sequence
from contextlib import suppress
from functools import reduce
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from gssf_plug.arguments import described, holds_floats, is_dense
from gssf_plug.errors import ArgumentError
from gssf_plug.metric import GSSFMetric
from gssf_plug.metric.arrays import as_array, check_has_values, to_tensor
from gssf_plug.metric.gallery import check_finite
from gssf_plug.metric.options import check_metric

__all__ = [
    "Labels",
    "Rows",
    "checked_features",
    "checked_labels",
    "checked_metric",
    "checked_sides",
    "finite_scores",
    "numbered",
    "promoted",
]

Rows = Sequence[Sequence[float]]
Labels = Int[Tensor, " _"] | Shaped[np.ndarray, " _"] | Sequence[int] | Sequence[str]

FINITE_CHUNK = 65_536  # rows that one check of finiteness reads at a time


def checked_features(
    name: str, features: Any, metric: GSSFMetric | None, width: int | None = None
) -> Float[Tensor, "n dim"]:
    """The features as a tensor; refuse what cannot be ranked.

    Args:
        name: the argument as the caller writes it.
        features: a torch tensor, numpy array, list of rows or column of a table; must be N×D with N ≥ 1, floating point
            and finite.
        metric: metric whose `dim` must be D; None means cosine.
        width: D of the other side, where it is known.

    Raises:
        ArgumentError: the first rule that is broken, with the first bad row.
    """
    check_metric(metric, values=True)
    features = as_array(features)
    if isinstance(features, list | tuple):
        with suppress(TypeError, ValueError):  # rows of several lengths, which `to_tensor` refuses by name
            features = np.asarray(features)  # in float64, as Python's numbers are
    features = to_tensor(name, features)
    check_has_values(name, features)
    if not is_dense(features):
        raise ArgumentError(name, "be stored densely", described(features), "Convert it with .to_dense().")
    if features.ndim != 2 or not holds_floats(features):
        rule = "be a floating-point matrix of features N×D"
        raise ArgumentError(name, rule, described(features), "Give one row per item.")
    if features.numel() == 0:
        raise ArgumentError(name, "hold at least one item", "none", "Check the loader or the split that made it.")
    if metric is not None and features.shape[1] != metric.dim:
        got = f"shape {tuple(features.shape)}"
        remedy = "Build GSSFMetric with the width of the features, or project them."
        raise ArgumentError(name, f"have the metric's {metric.dim} channels", got, remedy)
    if width is not None and features.shape[1] != width:
        got = f"shape {tuple(features.shape)}"
        raise ArgumentError(name, f"have the other side's {width} channels", got, "Project both to one width.")
    for start in range(0, len(features), FINITE_CHUNK):
        check_finite(name, features[start : start + FINITE_CHUNK], start)
    return features


def checked_labels(name: str, labels: Any, features: Tensor, of: str) -> Int[Tensor, " n"]:
    """`labels` on the features' device, one whole number per row of the argument `of`.

    Raises:
        ArgumentError: missing, of another length, or not whole numbers.
    """
    rule = f"hold one whole number per row of `{of}` ({len(features)})"
    if labels is None:
        raise ArgumentError(name, rule, "None", "Give it; the protocol is not defined without it.")
    try:
        tensor = torch.as_tensor(as_array(labels))
    except (TypeError, ValueError, RuntimeError) as error:
        remedy = "Number the labels: numpy.unique(labels, return_inverse=True)[1]."
        raise ArgumentError(name, rule, f"{type(labels).__name__} of other values", remedy) from error
    check_has_values(name, tensor)
    whole = is_dense(tensor) and not (tensor.is_floating_point() or tensor.is_complex())  # truth values are two labels
    if not whole or tensor.shape != (len(features),):
        remedy = "Features and labels must come from the same items, in the same order."
        raise ArgumentError(name, rule, described(tensor), remedy)
    return tensor.long().to(features.device)


def checked_sides(
    names: tuple[str, str], labels: tuple[Any, Any], features: tuple[Tensor, Tensor], of: tuple[str, str]
) -> tuple[Int[Tensor, " n"], Int[Tensor, " m"]]:
    """`checked_labels` of both sides; strings become numbers, equal ones equal on both.

    The string "-1" stays -1, which is junk in re-identification.
    """
    columns = numbered(*labels)
    first, second = (checked_labels(*one) for one in zip(names, columns, features, of, strict=True))
    return first, second


def numbered(*columns: Any) -> tuple[Any, ...]:
    """Columns of strings as whole numbers, equal strings by equal numbers in all of them; other columns as they are."""
    columns = tuple(map(as_array, columns))
    strings = [_strings(column) for column in columns]
    if not all(column is not None for column in strings):
        return columns
    names, codes = np.unique(np.concatenate(strings), return_inverse=True)
    codes = np.where(names == "-1", -1, np.arange(len(names)))[codes]
    return tuple(
        torch.from_numpy(part) for part in np.split(codes, np.cumsum([len(column) for column in strings])[:-1])
    )


def _strings(column: Any) -> Any:
    """The column as a numpy array of strings, or None where it is none."""
    if isinstance(column, Tensor) or column is None:
        return None
    try:
        array = np.asarray(column)
    except ValueError:
        return None
    if array.dtype.kind == "O" and all(isinstance(label, str) for label in array.flat):
        array = array.astype(str)
    return array if array.dtype.kind == "U" and array.ndim == 1 else None


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
