"""What stands around an exact computation: no gradients, autocast, compiler, nor tensor classes of somebody's own."""

import functools
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import ParamSpec, TypeVar

import torch

__all__ = ["as_outside", "on_plain_tensors"]

P = ParamSpec("P")
R = TypeVar("R")
DEVICES = ("cpu", "cuda", "xpu", "mps")
COMPILER = "torch._dynamo"  # what is compiled has imported it, which takes a second
REASON = "exact search and ranking read their numbers, and run outside graphs"


def on_plain_tensors(function: Callable[P, R]) -> Callable[P, R]:
    """Runs a function as it runs outside autocast and `torch.enable_grad`, and on the tensors beneath their subclasses.

    Autocast would join half-precision parts in another dtype than they are in; a subclass would have its say in every
    operation, sparse ones too, which most know nothing of; and `torch.set_default_device` would put what is made
    beside tensors on a CPU elsewhere. `as_outside` calls a function of the user, which finds the last two again.
    Within code that `torch.compile` compiles, the function breaks the graph and runs as it is; `fullgraph=True` refuses
    it, and says why.
    """

    @functools.wraps(function)
    def plain(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch.no_grad(), torch._C.DisableTorchFunction(), ExitStack() as stack:
            for device in DEVICES:
                if torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
            return function(*args, **kwargs)

    uncompiled: list[Callable[P, R]] = []  # made where first needed: the decorator imports the compiler

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if COMPILER not in sys.modules:
            return plain(*args, **kwargs)
        if not uncompiled:
            uncompiled.append(torch.compiler.disable(plain, reason=REASON))
        return uncompiled[0](*args, **kwargs)

    # as the decorator marks what it returns: without this, `fullgraph=True` would complain of the decorator itself
    vars(run).update(_torchdynamo_disable=True, _torchdynamo_disable_msg=REASON)
    return run


def as_outside(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Calls a function of the user within one that `on_plain_tensors` runs."""
    with torch._C._EnableTorchFunction():
        return function(*args, **kwargs)
