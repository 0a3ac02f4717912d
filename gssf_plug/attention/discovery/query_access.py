"""The heads of a query inside a tensor that also holds other things: take them out as rows, put them back.

A projection's output may be (…, C) with the query in some of its C channels, (B, C, H, W) after a convolution, or
(…, heads, size) and (…, heads, tokens, size) after a query norm. `HeadView` hides that: `take` gives (…, heads·size),
`put` undoes it. Both are pure tensor code: they compile, export and differentiate.

Where a tensor of the query or the key can be reached: the output of a module, or a bare parameter.

Most layers call a projection module, and its output is changed by a forward hook. Some hand the weight itself to a
function (`nn.MultiheadAttention`, XLNet): there the parameter is *shadowed* while the layer runs, by an instance
attribute of the same name that Python finds first. The parameter itself stays where it is, in `state_dict` too.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

__all__ = ["CHILD", "HeadView", "OutputSite", "Site", "WeightSite", "shadow", "unshadow"]


CHILD = "gssf"  # name of the child that holds the metrics of an attention module; what is below it is ours


class HeadView(nn.Module):
    """Where the heads lie in a tensor.

    Args:
        index: numbers of the channels of each head, (heads, size).
        width: number of channels in all.
        axis: axis on which the channels lie; default -1.
        head_axis: axis of the heads where they have one of their own (`width` is then heads · size); None (default)
            where they have none.
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
        # `put` looks channels up in [rows | all of x]: a head's channel in the rows, any other behind them
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
            # heads before the tokens come behind them first; then heads and their channels are one axis
            return (x.transpose(-3, -2) if self.head_axis == -3 else x).flatten(-2)
        return x if self.axis == -1 else x.movedim(self.axis, -1)

    def _undo(self, rows: Tensor, x: Tensor) -> Tensor:
        if self.head_axis is not None:
            rows = rows.unflatten(-1, (self.heads, self.size))
            return rows.transpose(-3, -2) if self.head_axis == -3 else rows
        return rows if self.axis == -1 else rows.movedim(-1, self.axis)


Replacement = Callable[[Tensor], Tensor]
"""Makes rows for those that it is given, by their shape, data type and device alone."""


@dataclass(frozen=True)
class OutputSite:
    """The output of `module`, at `path` below the attention module."""

    path: str
    module: nn.Module
    view: HeadView

    @contextmanager
    def replaced(self, make: Replacement) -> Iterator[None]:
        """Let the heads' rows be what `make` makes inside the context."""

        def replace(module: nn.Module, arguments: object, output: Tensor) -> Tensor:
            return self.view.put(output, make(self.view.take(output)))

        with ExitStack() as changes:
            if self.view.everything:
                _skip(self.module, changes)
            changes.callback(self.module.register_forward_hook(replace).remove)
            yield


@dataclass(frozen=True)
class WeightSite:
    """Parameters of `module`, at `path` below the attention module, that make the query: a weight, perhaps a bias."""

    path: str
    module: nn.Module
    views: dict[str, HeadView]

    @contextmanager
    def replaced(self, make: Replacement) -> Iterator[None]:
        """Let the heads' rows of every parameter be what `make` makes inside the context."""
        for name, view in self.views.items():
            weight = getattr(self.module, name)  # a shadow, where the key of the same weight is replaced already
            shadow(self.module, name, view.put(weight, make(view.take(weight))))
        try:
            yield
        finally:
            for name in self.views:
                unshadow(self.module, name)


Site = OutputSite | WeightSite


def _skip(module: nn.Module, changes: ExitStack) -> None:
    """Let a linear layer whose output is thrown away give zeros of its shape: a sixth of `load_attention` less.

    Only a plain one that nobody listens to, so that nothing but time tells the difference.
    """
    own = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    if type(module) is not nn.Linear or type(module.weight) is not nn.Parameter or own:
        return
    linear = module

    def forward(input: Tensor) -> Tensor:
        weight = linear.weight
        alike = input.shape[-1] == weight.shape[1] and input.dtype == weight.dtype and input.device == weight.device
        if not alike or torch.is_autocast_enabled(input.device.type):
            return nn.functional.linear(input, weight, linear.bias)  # with its errors, and its data types
        return input.new_zeros(*input.shape[:-1], weight.shape[0])

    shadow(linear, "forward", forward)
    changes.callback(unshadow, linear, "forward")


def shadow(module: nn.Module, name: str, value: object) -> None:
    """Let `module.name` give `value`; the parameter of that name stays registered and untouched."""
    object.__setattr__(module, name, value)


def unshadow(module: nn.Module, name: str) -> None:
    """Let `module.name` give the parameter again."""
    module.__dict__.pop(name, None)
