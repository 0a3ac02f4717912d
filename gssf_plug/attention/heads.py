"""The heads of a query inside a tensor that also holds other things: take them out as rows, put them back.

A projection's output may be (…, C) with the query in some of its C channels, (B, C, H, W) after a convolution, or
(…, heads, size) and (…, heads, tokens, size) after a query norm. `HeadView` hides that: `take` gives (…, heads·size),
`put` undoes it. Both are pure tensor code: they compile, export and differentiate.
"""

from collections.abc import Callable
from typing import Literal, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

__all__ = ["HeadView"]


class HeadView(nn.Module):
    """Where the heads lie in a tensor.

    Args:
        index: channels of each head.
        width: number of channels in all.
        axis: axis of the channels.
        head_axis: axis of the heads where they have one of their own (channels are then `width` = heads · size).
    """

    index: Int[Tensor, " channels"]
    order: Int[Tensor, " width"]

    def __init__(
        self,
        index: Int[Tensor, "heads size"],
        width: int,
        *,
        axis: int = -1,
        head_axis: Literal[-2, -3] | None = None,
    ) -> None:
        super().__init__()
        self.heads, self.size = index.shape
        self.axis, self.head_axis, self.width = axis, head_axis, width
        flat = index.reshape(-1)
        self.start = int(flat[0])
        self.contiguous = torch.equal(flat, torch.arange(self.start, self.start + len(flat)))
        self.everything = self.contiguous and len(flat) == width and axis == -1 and head_axis is None
        order = torch.arange(width) + len(flat)
        order[flat] = torch.arange(len(flat))
        self.index, self.order = flat, order  # no buffers: averages of models (EMA) round whole numbers down

    @classmethod
    def whole(cls, heads: int, size: int, *, axis: int = -1, head_axis: Literal[-2, -3] | None = None) -> Self:
        """Every channel belongs to the query."""
        return cls(torch.arange(heads * size).view(heads, size), heads * size, axis=axis, head_axis=head_axis)

    def take(self, x: Float[Tensor, "..."]) -> Float[Tensor, "... channels"]:
        """The heads as rows (…, heads·size)."""
        if self.everything:
            return x
        x = self._channels_last(x)
        length = self.heads * self.size
        if length == self.width:
            return x if self.contiguous else x[..., self.index]
        return x.narrow(-1, self.start, length) if self.contiguous else x[..., self.index]

    def put(self, x: Float[Tensor, "..."], rows: Float[Tensor, "... channels"]) -> Float[Tensor, "..."]:
        """`x` with its heads replaced by `rows`."""
        if self.everything:
            return rows
        length = self.heads * self.size
        if self.contiguous and length == self.width:
            return self._undo(rows, x)
        last = self._channels_last(x)
        if not self.contiguous:
            return self._undo(torch.cat([rows, last], -1)[..., self.order], x)
        parts = [last[..., : self.start], rows, last[..., self.start + length :]]
        return self._undo(torch.cat([part for part in parts if part.shape[-1]], -1), x)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.index, self.order = fn(self.index), fn(self.order)
        return super()._apply(fn, recurse)

    def _channels_last(self, x: Tensor) -> Tensor:
        if self.head_axis is not None:
            return (x.transpose(-3, -2) if self.head_axis == -3 else x).flatten(-2)
        return x if self.axis == -1 else x.movedim(self.axis, -1)

    def _undo(self, rows: Tensor, x: Tensor) -> Tensor:
        if self.head_axis is not None:
            rows = rows.unflatten(-1, (self.heads, self.size))
            return rows.transpose(-3, -2) if self.head_axis == -3 else rows
        return rows if self.axis == -1 else rows.movedim(-1, self.axis)
