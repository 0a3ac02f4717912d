"""What a model makes of a batch: features of two sides with the ids that say what belongs together.

A side is one vector per item, (N, D), or `Fragments`: several vectors per item under a mask, for models that compare
regions with words. Both can be gathered over processes and joined over batches; fragments are widened to the longest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from gssf_plug.arguments import described, holds_floats
from gssf_plug.distributed import gather, gather_detached
from gssf_plug.errors import ArgumentError

__all__ = ["Embedding", "Fragments", "Side", "gather_embedding", "join_embeddings", "vectors"]


@dataclass(frozen=True)
class Fragments:
    """Items of several vectors: regions of images, words of captions.

    Args:
        features: feature of each fragment, (N, T, D), not normalised.
        mask: True where there is a fragment, (N, T). What stands under False never counts.
    """

    features: Float[Tensor, "n t dim"]
    mask: Bool[Tensor, "n t"]

    def __len__(self) -> int:
        return len(self.mask)

    def __getitem__(self, which: Int[Tensor, " k"] | slice) -> "Fragments":
        return Fragments(self.features[which], self.mask[which])

    def widened(self, width: int) -> "Fragments":
        """The same items with room for `width` fragments each, at least as many as now."""
        more = width - self.mask.shape[1]
        return Fragments(pad(self.features, (0, 0, 0, more)), pad(self.mask, (0, more)))


Side = Float[Tensor, "_ _"] | Fragments  # two sides of one signature differ in length


class Embedding(NamedTuple):
    """Queries (N, D) with ids (N,), gallery (M, D) with ids (M,); equal ids belong together.

    In a model of one tower the two sides are the same tensor. In `LocalAlignment` both are `Fragments`.
    """

    queries: Side
    query_ids: Int[Tensor, " n"]
    gallery: Side
    gallery_ids: Int[Tensor, " m"]

    @property
    def one_sided(self) -> bool:
        """Whether items are compared with items of the same list, and so also with themselves."""
        return self.gallery is self.queries


def vectors(name: str, side: Side) -> Float[Tensor, "n dim"]:
    """A side that must be one vector per item.

    Raises:
        ArgumentError: the side is `Fragments`, or no matrix of features.
    """
    if isinstance(side, Fragments):
        raise ArgumentError(
            name,
            "hold one vector per item",
            f"fragments of shape {tuple(side.features.shape)}",
            "Fragments are compared by their model: pass evaluation=alignment_measures(model) to the trainer.",
        )
    if not holds_floats(side) or side.ndim != 2:
        rule = "be a floating-point matrix of features N×D"
        raise ArgumentError(name, rule, described(side), "Give one row per item.")
    return side


def gather_embedding(own: Embedding) -> Embedding:
    """The embedding of all processes' rows, features in float32 or better; gradients flow back."""
    queries, query_ids = _gather_side(own.queries), gather_detached(own.query_ids)
    if own.one_sided:
        return Embedding(queries, query_ids, queries, query_ids)
    return Embedding(queries, query_ids, _gather_side(own.gallery), gather_detached(own.gallery_ids))


def join_embeddings(parts: Sequence[Embedding]) -> Embedding:
    """One embedding of several batches, in their order."""
    queries = _join_sides([part.queries for part in parts])
    query_ids = torch.cat([part.query_ids for part in parts])
    if parts[0].one_sided:
        return Embedding(queries, query_ids, queries, query_ids)
    gallery = _join_sides([part.gallery for part in parts])
    return Embedding(queries, query_ids, gallery, torch.cat([part.gallery_ids for part in parts]))


def _gather_side(side: Side) -> Side:
    if not isinstance(side, Fragments):
        return _precise(gather(side))
    widths = gather_detached(torch.tensor([side.mask.shape[1]], device=side.mask.device))
    side = side.widened(int(widths.max()))
    return Fragments(_precise(gather(side.features)), gather_detached(side.mask))


def _join_sides(sides: Sequence[Side]) -> Side:
    fragments = [side for side in sides if isinstance(side, Fragments)]
    if not fragments:
        return torch.cat([side for side in sides if isinstance(side, Tensor)])
    width = max(side.mask.shape[1] for side in fragments)
    wide = [side.widened(width) for side in fragments]
    return Fragments(torch.cat([side.features for side in wide]), torch.cat([side.mask for side in wide]))


def _precise(features: Tensor) -> Tensor:
    return features.to(torch.promote_types(features.dtype, torch.float32))
