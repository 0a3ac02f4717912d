"""Which pairs of a score matrix are positives, which negatives: by id, checked, with excluded pairs left out."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gssf_plug.arguments import described, holds_floats, is_dense
from gssf_plug.errors import ArgumentError
from gssf_plug.metric.arrays import Array, to_tensor

__all__ = ["Pairs", "relevance_by_id", "sort_pairs"]


class Pairs(NamedTuple):
    """A checked batch: `scores` in float32 or better, and two masks that exclude each other."""

    scores: Float[Tensor, "n m"]
    positive: Bool[Tensor, "n m"]
    negative: Bool[Tensor, "n m"]

    def swapped(self) -> "Pairs":
        """The other direction: the gallery asks, the queries answer."""
        return Pairs(self.scores.T, self.positive.T, self.negative.T)


def relevance_by_id(
    query_ids: Int[Array, " n"] | Sequence[int], gallery_ids: Int[Array, " m"] | Sequence[int]
) -> Bool[Tensor, "n m"]:
    """True where the ids agree, so that several captions of an image, or equal items of a batch, are all positives.

    Args:
        query_ids: one whole number for each query, (N,), as a tensor, a numpy array or a list.
        gallery_ids: one whole number for each gallery item, (M,), likewise.

    Raises:
        ArgumentError: the ids are no list of whole numbers.
    """
    sides = {"query_ids": to_tensor("query_ids", query_ids), "gallery_ids": to_tensor("gallery_ids", gallery_ids)}
    for name, ids in sides.items():
        if not is_dense(ids) or ids.is_floating_point() or ids.is_complex() or ids.ndim != 1:
            remedy = "Number the items that belong together."
            raise ArgumentError(name, "hold one whole number per item", described(ids), remedy)
    # in one dtype that torch can compare: it has no promotion for unsigned numbers of more than 8 bits
    queries, gallery = (ids.long() for ids in sides.values())
    return queries[:, None] == gallery.to(queries.device)[None, :]


def sort_pairs(
    scores: Float[Tensor, "n m"],
    relevance: Bool[Tensor, "n m"],
    exclude: Bool[Tensor, "n m"] | None,
    name: str = "exclude",
) -> Pairs:
    """Check the three matrices against each other and split the pairs.

    Args:
        scores: similarities (N, M); larger is better.
        relevance: True where a pair belongs together, (N, M).
        exclude: True where a pair counts neither way, (N, M); None leaves out none.
        name: name of `exclude`, as the caller writes it.

    Raises:
        ArgumentError: `scores` is no matrix of floating-point numbers, or a mask is not boolean or not of its shape.
    """
    if not holds_floats(scores) or scores.ndim != 2:
        rule, remedy = "be a matrix of floating-point scores (N, M)", "Give one row per query; losses take one batch."
        raise ArgumentError("scores", rule, described(scores), remedy)
    for mask_name, mask in (("relevance", relevance), (name, exclude)):
        if mask_name == name and mask is None:
            continue
        if isinstance(mask, Tensor) and mask.device != scores.device:
            remedy = "Move it with .to(scores.device)."
            raise ArgumentError(mask_name, f"be on the device of `scores`, {scores.device}", mask.device, remedy)
        if not is_dense(mask) or mask.dtype != torch.bool or mask.shape != scores.shape:
            raise ArgumentError(
                mask_name,
                f"be a boolean matrix of shape {tuple(scores.shape)}, one value per score",
                described(mask),
                "Build it from ids with relevance_by_id(query_ids, gallery_ids).",
            )
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if exclude is None:
        return Pairs(scores, relevance, ~relevance)
    return Pairs(scores, relevance & ~exclude, ~(relevance | exclude))
