r"""Losses that are means over rows: the same value from the whole score matrix, or from strips of it.

    L = weight · Σ_sides Σ_rows term(row) / count

The sides are the queries asking and, with `both_sides`, the gallery asking. A term sees one row
of scores whole, so a strip of rows is enough to compute its terms: `gssf_plug.losses.chunked` builds
large batches on it.
"""

import inspect
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from gssf_plug.errors import ArgumentError
from gssf_plug.losses.pair_masks import Pairs, sort_pairs

__all__ = ["RowLoss", "RowSum", "mask_name"]


class RowSum(NamedTuple):
    """Sum of the terms of some rows, and how many terms it has."""

    total: Float[Tensor, ""]
    number: Int[Tensor, ""]


class RowLoss(nn.Module):
    """Subclasses give `begin`, which is called once for each batch."""

    both_sides: ClassVar[bool] = True
    weight: ClassVar[float] = 1.0

    def begin(self) -> Callable[[Pairs], RowSum]:
        """The terms of rows of this batch: a function of pairs that hold these rows and all columns."""
        raise NotImplementedError

    def forward(
        self,
        scores: Float[Tensor, "n m"],
        relevance: Bool[Tensor, "n m"],
        *,
        exclude: Bool[Tensor, "n m"] | None = None,
        forbidden: Bool[Tensor, "n m"] | None = None,
    ) -> Float[Tensor, ""]:
        """The loss of one batch.

        Args:
            scores: similarities of N queries with M gallery items, (N, M); larger is better.
            relevance: True where a pair belongs together, (N, M).
            exclude: True where a pair counts neither way, such as an item with itself; None (default) lets all pairs
                count.
            forbidden: the older name of `exclude`.
        """
        if exclude is not None and forbidden is not None:
            raise ArgumentError(
                "forbidden", "be left out beside `exclude`", "both", "It is the older name of `exclude`."
            )
        name, mask = ("exclude", exclude) if exclude is not None else ("forbidden", forbidden)
        pairs = sort_pairs(scores, relevance, mask, name)
        terms = self.begin()
        if scores.numel() == 0:  # nothing can be learned; there is no hardest item of none
            return pairs.scores.sum()
        sides = [pairs, pairs.swapped()] if self.both_sides else [pairs]
        return self.combined([terms(side) for side in sides])

    def combined(self, sides: list[RowSum]) -> Float[Tensor, ""]:
        """The loss from the sums of each side; 0 where nothing counts."""
        return self.weight * torch.stack([side.total / side.number.clamp_min(1) for side in sides]).sum()


def mask_name(loss: nn.Module) -> str:
    """What a loss calls the mask of pairs that count neither way: somebody's own may have the older name."""
    names = inspect.signature(loss.forward).parameters
    return "exclude" if "exclude" in names or "forbidden" not in names else "forbidden"
