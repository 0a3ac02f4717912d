"""Run a model undisturbed: note how its layers are called and what they put out, call a layer like that again.

Models change while they run. transformers installs its output-recording hooks at the first forward that records and
sets a flag beside them, BigBird replaces its attention on short inputs, rotary embeddings grow their tables, caches are
filled. No list of such habits would be complete, so `undisturbed` keeps the whole object graph below the model and puts
it back: the attributes of every module, every dictionary, list and set among them (the hooks of torch are
dictionaries), the configuration, and the values of all tensors that are no parameters.
"""

import copy
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from operator import is_
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = [
    "LayerCall",
    "Recording",
    "Run",
    "Snapshot",
    "first_tensor",
    "record",
    "substitute",
    "tensors_in",
    "undisturbed",
    "with_new",
]

Run = Callable[[], object]


@dataclass(frozen=True)
class LayerCall:
    """One call of a layer in a run.

    Args:
        arguments: positional arguments, copied before the layer ran, since layers write into caches that they are
            given; None where they cannot be copied.
        options: keyword arguments, copied likewise.
        output: the first tensor that the layer returned.
    """

    arguments: tuple[Any, ...] | None
    options: dict[str, Any]
    output: Tensor

    def again(self, layer: nn.Module) -> Tensor | None:
        """What `layer` puts out when it is called like this once more, by itself; None where that cannot be told."""
        if self.arguments is None:
            return None
        memo: dict[int, Any] = {}
        return first_tensor(layer(*_copied(self.arguments, memo), **_copied(self.options, memo)))


@dataclass(frozen=True)
class Recording:
    """What one run showed: the calls of each layer, by the layer's path, and the output shapes of modules."""

    calls: dict[str, list[LayerCall]] = field(default_factory=dict)
    shapes: dict[nn.Module, torch.Size] = field(default_factory=dict)


def record(run: Run, layers: Mapping[str, nn.Module], shaped: Iterable[nn.Module] = ()) -> Recording:
    """Note every call of `layers` in one run, and the shape of the first output of each module of `shaped`."""
    found = Recording()

    def remember(module: nn.Module, arguments: object, output: object) -> None:
        if isinstance(output, Tensor):
            found.shapes.setdefault(module, output.shape)

    with ExitStack() as hooks:
        for name, layer in layers.items():
            _note_calls(layer, found.calls, name, hooks)
        for module in dict.fromkeys(shaped):
            hooks.callback(module.register_forward_hook(remember).remove)
        _seeded(run)
    return found


def _note_calls(layer: nn.Module, calls: dict[str, list[LayerCall]], name: str, hooks: ExitStack) -> None:
    """Let `layer` note its calls under `name` until `hooks` are taken off."""
    given: list[Any] = []  # a stack: a layer may be called inside itself

    def enter(layer: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        memo: dict[int, Any] = {}
        try:
            given.append((_copied(arguments, memo), _copied(options, memo)))
        except Exception:  # copy.deepcopy says no in as many ways as there are objects
            given.append((None, {}))

    def leave(layer: nn.Module, arguments: object, output: object) -> None:
        first, (positional, options) = first_tensor(output), given.pop()
        if first is not None:
            calls.setdefault(name, []).append(LayerCall(positional, options, first.detach().clone()))

    hooks.callback(layer.register_forward_pre_hook(enter, with_kwargs=True).remove)
    hooks.callback(layer.register_forward_hook(leave).remove)


def substitute(
    run: Run, layers: Mapping[str, nn.Module], natural: Mapping[str, list[Tensor]]
) -> dict[str, list[Tensor]]:
    """What the layers put out in one run, call by call, while the model goes on with their natural outputs instead."""
    noted: dict[str, list[Tensor]] = {}

    def note(name: str) -> Callable[[nn.Module, object, object], object]:
        def hook(module: nn.Module, arguments: object, output: object) -> object:
            found = first_tensor(output)
            if found is None:
                return output
            calls, before = noted.setdefault(name, []), natural.get(name, [])
            calls.append(found.detach().clone())
            return with_new(output, found, before[len(calls) - 1].clone()) if len(calls) <= len(before) else output

        return hook

    with ExitStack() as hooks:
        for name, layer in layers.items():
            hooks.callback(layer.register_forward_hook(note(name)).remove)
        _seeded(run)
    return noted


def _seeded(run: Run) -> None:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - some models draw from the global state
    random.seed(0)
    run()


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    """`value` with tensors and containers of its own; what was one object stays one (attention asks `key is value`)."""
    kind = type(value)
    if kind in UNCHANGING or isinstance(value, nn.Module):
        return value
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, Tensor):
        made: Any = value.detach().clone()
    elif kind in (tuple, list):
        made = kind([_copied(part, memo) for part in value])
    elif kind is dict:
        made = {key: _copied(part, memo) for key, part in value.items()}
    else:
        made = copy.deepcopy(value)  # a cache of keys and values, say
    # the same object twice stays one object: some layers ask whether key is value
    memo[id(value)] = made
    return made


UNCHANGING = {type(None), bool, int, float, str, torch.dtype, torch.device, torch.Size}


def tensors_in(output: object) -> Iterator[Tensor]:
    """The floating-point tensors of an output, however deep they lie, in order."""
    if isinstance(output, Tensor):
        yield from [output] if output.is_floating_point() else []
    else:
        parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, (tuple, list)) else ()
        for part in parts:
            yield from tensors_in(part)


def first_tensor(output: object) -> Tensor | None:
    """The first of them."""
    return next(tensors_in(output), None)


def with_new(output: object, old: Tensor, new: Tensor) -> object:
    """`output` with `old` replaced by `new`, however deep it lies."""
    if output is old:
        return new
    if isinstance(output, Mapping):
        for key, part in output.items():
            output[key] = with_new(part, old, new)  # type: ignore[index]
    elif isinstance(output, (tuple, list)):
        parts = [with_new(part, old, new) for part in output]
        kind: Any = type(output)
        return kind(*parts) if hasattr(output, "_fields") else kind(parts)
    return output


class Snapshot:
    """The state of everything below a model that is not the value of a parameter.

    Objects are followed where their class comes from a package that a module of the model comes from (transformers, the
    user's own file), so that neither a data loader nor a logger that happens to hang below the model is touched.

    Args:
        model: the model whose state is kept; it is only read.
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
        with torch.random.fork_rng(devices), torch.inference_mode(False), torch.no_grad():
            for module in model.modules():
                module.training = False  # not eval(), which classes override and some adapters take for "merge now"
                if "_compiled_call_impl" in vars(module):
                    module._compiled_call_impl = None
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        before.put_back()
