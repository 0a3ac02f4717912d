"""What running a model may change in it, kept beforehand and put back to the bit: flags, hooks, caches, parts.

Models change while they run. transformers installs its output-recording hooks at the first forward that records and
sets a flag beside them, BigBird replaces its attention on short inputs, rotary embeddings grow their tables, caches are
filled. No list of such habits would be complete, so the whole object graph below the model is kept: the attributes of
every module, every dictionary, list and set among them (the hooks of torch are dictionaries), the configuration, and
the values of all tensors that are no parameters.
"""

import random
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from operator import is_
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["Snapshot", "undisturbed"]


class Snapshot:
    """The state of everything below a model that is not the value of a parameter.

    Objects are followed where their class comes from a package that a module of the model comes from (transformers, the
    user's own file), so that neither a data loader nor a logger that happens to hang below the model is touched.

    Args:
        model: the model; it is only read.
    """

    def __init__(self, model: nn.Module) -> None:
        self._dicts: list[tuple[dict[Any, Any], list[Any], list[Any]]] = []
        self._sequences: list[tuple[Any, list[Any]]] = []
        self._sets: list[tuple[set[Any], set[Any]]] = []
        self._tensors: list[tuple[Tensor, Tensor]] = []
        self._parameters: list[tuple[nn.Parameter, bool, Tensor | None]] = []
        self._generators: list[tuple[torch.Generator, Tensor]] = []
        packages = {type(module).__module__.partition(".")[0] for module in model.modules()} - {"torch", "builtins"}
        pending: list[Any] = [model]
        seen: set[int] = set()
        while pending:  # a loop, not a recursion: this looks at some thousand objects
            found = pending.pop()
            kind = type(found)
            if kind in PLAIN or id(found) in seen:
                continue
            seen.add(id(found))
            if isinstance(found, dict):
                self._dicts.append((found, list(found), list(found.values())))
                pending.extend(found.values())
            elif isinstance(found, Tensor):
                self._keep_tensor(found)
                pending.append(found.__dict__)
            elif isinstance(found, (list, deque, tuple)):
                if not isinstance(found, tuple):
                    self._sequences.append((found, list(found)))
                pending.extend(found)
            elif isinstance(found, set):
                self._sets.append((found, set(found)))
            elif isinstance(found, torch.Generator):
                self._generators.append((found, found.get_state()))
            elif isinstance(found, nn.Module) or kind.__module__.partition(".")[0] in packages:
                pending.append(getattr(found, "__dict__", None))

    def put_back(self) -> None:
        """Give everything that changed its old contents; what did not change is not written to."""
        self._put_back_containers()
        for generator, state in self._generators:
            generator.set_state(state)
        for parameter, flag, gradient in self._parameters:
            if parameter.requires_grad != flag or parameter.grad is not gradient:
                parameter.requires_grad_(flag)
                parameter.grad = gradient
        with torch.no_grad():
            for tensor, values in self._tensors:
                if tensor.shape == values.shape and not torch.equal(tensor, values):
                    tensor.copy_(values)

    def _put_back_containers(self) -> None:
        for entries, keys, values in self._dicts:
            # by identity, since == of tensors is no answer; map and is_ run in C
            if len(entries) != len(keys) or not all(map(is_, [*entries, *entries.values()], [*keys, *values])):
                entries.clear()
                entries.update(zip(keys, values, strict=True))
        for sequence, items in self._sequences:
            if len(sequence) != len(items) or not all(map(is_, sequence, items)):
                sequence.clear()
                sequence.extend(items)
        for members, before in self._sets:
            if members != before:
                members.clear()
                members.update(before)

    def _keep_tensor(self, tensor: Tensor) -> None:
        if isinstance(tensor, nn.Parameter):
            self._parameters.append((tensor, tensor.requires_grad, tensor.grad))
        elif not tensor.is_meta:
            self._tensors.append((tensor, tensor.detach().clone()))


PLAIN = {type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size}


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Let the model run inside, evaluating and without gradients; afterwards it is the model that it was.

    Put back are everything that `Snapshot` keeps, the random states of Python, NumPy and torch, and the gradient mode.
    Modules run uncompiled inside, so that `torch.compile` neither compiles for examples nor counts them as recompiles.
    Parameters are read, never written. Not put back: caches of functions (`functools.lru_cache`), outside the model.
    """
    before = Snapshot(model)
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 - some models draw from the global state
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices), torch.no_grad():
            for module in model.modules():
                module.training = False  # not eval(), which classes override and some adapters take for "merge now"
                if "_compiled_call_impl" in vars(module):
                    module._compiled_call_impl = None
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        before.put_back()
