"""Where a tensor of the query or the key can be reached: the output of a module, or a bare parameter.

Most layers call a projection module, and its output is changed by a forward hook. Some hand the weight itself to a
function (`nn.MultiheadAttention`, XLNet): there the parameter is *shadowed* while the layer runs, by an instance
attribute of the same name that Python finds first. The parameter itself stays where it is, in `state_dict` too.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from gssf_plug.attention.heads import HeadView

__all__ = ["OutputSite", "Site", "WeightSite", "shadow", "unshadow"]

Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class OutputSite:
    """The output of `module`, at `path` below the attention module."""

    path: str
    module: nn.Module
    view: HeadView

    @contextmanager
    def changed(self, change: Change) -> Iterator[None]:
        """Pass the heads' rows through `change` inside the context."""

        def replace(module: nn.Module, arguments: object, output: Tensor) -> Tensor:
            return self.view.put(output, change(self.view.take(output)))

        handle = self.module.register_forward_hook(replace)
        try:
            yield
        finally:
            handle.remove()


@dataclass(frozen=True)
class WeightSite:
    """Parameters of `module`, at `path` below the attention module, that make the query: a weight, perhaps a bias."""

    path: str
    module: nn.Module
    views: dict[str, HeadView]

    @contextmanager
    def changed(self, change: Change) -> Iterator[None]:
        """Pass the heads' rows of every parameter through `change` inside the context."""
        for name, view in self.views.items():
            weight = getattr(self.module, name)  # a shadow, where the key of the same weight is changed already
            shadow(self.module, name, view.put(weight, change(view.take(weight))))
        try:
            yield
        finally:
            for name in self.views:
                unshadow(self.module, name)


Site = OutputSite | WeightSite


def shadow(module: nn.Module, name: str, value: Tensor) -> None:
    """Let `module.name` give `value`; the parameter of that name stays registered and untouched."""
    object.__setattr__(module, name, value)


def unshadow(module: nn.Module, name: str) -> None:
    """Let `module.name` give the parameter again."""
    module.__dict__.pop(name, None)
