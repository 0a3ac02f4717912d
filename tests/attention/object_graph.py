"""Everything that can be reached from a model, as a flat table: what a patch must leave as it found it."""

import enum
import types
from typing import Any

import torch
from torch import Tensor, nn

ATOMS = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, enum.Enum, type)
CALLED = (types.FunctionType, types.MethodType, types.BuiltinFunctionType, types.ModuleType)


def object_graph(model: nn.Module) -> dict[str, Any]:
    """Path → what is there: values of atoms and tensors, identities of all objects, keys and lengths of containers."""
    table: dict[str, Any] = {}
    _enter("model", model, table, set())
    return table


def _enter(path: str, found: Any, table: dict[str, Any], seen: set[int]) -> None:
    if isinstance(found, ATOMS):
        table[path] = repr(found)
        return
    table[path] = id(found)
    if id(found) in seen or isinstance(found, CALLED):
        return
    seen.add(id(found))
    if isinstance(found, Tensor):
        values = found.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes() if found.numel() else b""
        gradient = id(found.grad) if found.is_leaf else None
        table[f"{path}:values"] = (str(found.dtype), tuple(found.shape), found.requires_grad, gradient, values)
        return
    if isinstance(found, torch.Generator):
        table[f"{path}:state"] = found.get_state().numpy().tobytes()
    if isinstance(found, (set, frozenset)):
        table[f"{path}:members"] = sorted(map(str, found))
    for name, value in _inside(found):
        _enter(f"{path}{name}", value, table, seen)


def _inside(found: Any) -> list[tuple[str, Any]]:
    entries = [(f".{name}", value) for name, value in vars(found).items()] if hasattr(found, "__dict__") else []
    if isinstance(found, dict):
        entries += [
            ("[keys]", repr([str(key) for key in found])),
            *((f"[{key}]", value) for key, value in found.items()),
        ]
    if isinstance(found, (list, tuple)):
        entries += [("[length]", len(found)), *((f"[{place}]", value) for place, value in enumerate(found))]
    return entries
