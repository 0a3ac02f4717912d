"""Run a model on one example and note what its layers put out."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["Run", "first_tensor", "outputs_of", "tensors_in", "with_new"]

Run = Callable[[], object]


def outputs_of(
    run: Run,
    scopes: Mapping[str, nn.Module],
    natural: Mapping[str, list[Tensor]],
    shapes: dict[nn.Module, torch.Size],
    shaped: Sequence[nn.Module],
) -> dict[str, list[Tensor]]:
    """What the scopes put out in one run, call by call; with `natural` given, the model goes on with that instead."""
    noted: dict[str, list[Tensor]] = {}

    def note(name: str) -> Callable[[nn.Module, object, object], object]:
        def hook(module: nn.Module, arguments: object, output: object) -> object:
            found = first_tensor(output)
            if found is None:
                return output
            calls = noted.setdefault(name, [])
            calls.append(found.detach().clone())
            before = natural.get(name, [])
            return with_new(output, found, before[len(calls) - 1].clone()) if len(calls) <= len(before) else output

        return hook

    def remember(module: nn.Module, arguments: object, output: object) -> None:
        if isinstance(output, Tensor):
            shapes.setdefault(module, output.shape)

    handles = [scope.register_forward_hook(note(name)) for name, scope in scopes.items()]
    handles += [module.register_forward_hook(remember) for module in dict.fromkeys(shaped)]
    try:
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        random.seed(0)
        run()
    finally:
        for handle in handles:
            handle.remove()
    return noted


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
