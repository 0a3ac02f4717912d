"""Which pairs of a score matrix are positives, which negatives: by id, checked, with forbidden pairs left out."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gssf_plug.errors import ArgumentError

__all__ = ["Pairs", "relevance_by_id", "sort_pairs"]


class Pairs(NamedTuple):
    """A checked batch: `scores` in float32 or better, and two masks that exclude each other."""

    scores: Float[Tensor, "n m"]
    positive: Bool[Tensor, "n m"]
    negative: Bool[Tensor, "n m"]

    def swapped(self) -> "Pairs":
        """The other direction: the gallery asks, the queries answer."""
        return Pairs(self.scores.T, self.positive.T, self.negative.T)


def relevance_by_id(query_ids: Int[Tensor, " n"], gallery_ids: Int[Tensor, " m"]) -> Bool[Tensor, "n m"]:
    """True where the ids agree, so that several captions of an image, or equal items of a batch, are all positives."""
    return query_ids[:, None] == gallery_ids[None, :]


def sort_pairs(
    scores: Float[Tensor, "n m"], relevance: Bool[Tensor, "n m"], forbidden: Bool[Tensor, "n m"] | None
) -> Pairs:
    """Check the three matrices against each other and split the pairs.

    Raises:
        ArgumentError: `relevance` or `forbidden` is not boolean or not of the shape of `scores`.
    """
    for name, mask in (("relevance", relevance), ("forbidden", forbidden)):
        if mask is not None and (mask.dtype != torch.bool or mask.shape != scores.shape):
            raise ArgumentError(
                name,
                f"be a boolean matrix of shape {tuple(scores.shape)}, one value per score",
                f"{mask.dtype} of shape {tuple(mask.shape)}",
                "Build it from ids with relevance_by_id(query_ids, gallery_ids).",
            )
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if forbidden is None:
        return Pairs(scores, relevance, ~relevance)
    return Pairs(scores, relevance & ~forbidden, ~(relevance | forbidden))
