"""How the channels of one projection are packed: which of them belong to which head, as arithmetic on numbers alone."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

__all__ = ["Heads", "Packing"]


@dataclass(frozen=True)
class Heads:
    """How wide one attention module is.

    Args:
        query: number of query heads H.
        key: number of key heads G; H is a multiple of it.
        size: channels d of a query head.
        key_size: channels of a key head that meet the query; smaller than `size` where a rotary part is kept apart.
    """

    query: int
    key: int
    size: int
    key_size: int


@dataclass(frozen=True)
class Packing:
    """How the channels of one projection are packed.

    The channels are cut into `groups` equal groups, and each group holds its share of every part in `order`.
    "qkv" in 1 group is [Q | K | V] (GPT-2, ViT, Phi-3); in one group per key head it is q|k|v head by head (BLOOM,
    GPT-NeoX, Falcon); "q" alone is a projection of its own; "qg" in one group per query head puts a gate behind each
    query (Qwen3-Next).

    Args:
        order: parts as letters, in the order in which they lie: q, k, v as wide as k, and g (a gate) or V (a value) of
            any width.
        groups: a number, or "key_heads" or "query_heads" for one group per head.
    """

    order: str
    groups: int | str = 1

    def channels(self, part: str, width: int, heads: Heads) -> Int[Tensor, "heads size"] | None:
        """Indices of the channels of `part` ("q" or "k"), head by head; None where this packing cannot have `width`."""
        named = {"key_heads": heads.key, "query_heads": heads.query}
        groups = named[self.groups] if isinstance(self.groups, str) else self.groups
        sizes = self._sizes(width, heads)
        if sizes is None or any(size % groups or size <= 0 for size in sizes):
            return None
        shares = [size // groups for size in sizes]
        per_group = torch.arange(width).view(groups, width // groups).split(shares, dim=1)
        count = heads.query if part == "q" else heads.key
        chosen = per_group[self.order.index(part)]
        return chosen.reshape(count, -1) if chosen.numel() % count == 0 else None

    def _sizes(self, width: int, heads: Heads) -> list[int] | None:
        """Width of each part; values are as wide as keys, except beside keys that are kept apart from a rotary part."""
        fixed = {"q": heads.query * heads.size, "k": heads.key * heads.key_size}
        rest = width - sum(fixed[part] for part in self.order if part in fixed)
        if "g" in self.order or "V" in self.order:
            right = rest > 0
        elif "v" in self.order:
            right = rest == fixed["k"] or (heads.key_size != heads.size and rest > 0)
        else:
            right = rest == 0
        if right:
            return [fixed.get(part, rest) for part in self.order]
        return None
