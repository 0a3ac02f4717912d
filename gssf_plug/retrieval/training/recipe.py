"""What a run began with, so that it is not resumed as another run without a word.

A recipe is a mapping of JSON-able values, nested as deep as one likes: the fields of the configuration, what model and
loss are made of, what the data look like. Two recipes are compared leaf by leaf.
"""

import inspect
import logging
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gssf_plug.errors import ArgumentError

__all__ = ["check_recipe", "describe_module", "differences"]

logger = logging.getLogger(__name__)

SHOWN = 20
LONGEST = 32  # values of a list that are kept one by one
# What may change between two starts of one run without changing a number.
_FREE = {"training", "gradient_checkpointing", "name_or_path", "precision"}
_LEAVES = (bool, int, float, str, type(None))


def describe_module(module: nn.Module) -> dict[str, Any]:
    """Class, shapes of parameters, and public settings of a module and of each module in it.

    Settings are attributes that hold texts, types of torch, functions (by name), numbers that the constructor takes, or
    lists of these: a margin, a dropout, a constraint, an activation.

    Args:
        module: module to describe, before it is sharded, which changes classes.

    Returns:
        {"" or path: {"class": "…", "margin": 0.2, "weight": "(8, 8) float32", …}}.
    """
    return {path: dict(_settings(part)) for path, part in module.named_modules()}


def check_recipe(saved: Mapping[str, Any], now: Mapping[str, Any], folder: Path, *, anyway: bool = False) -> None:
    """Compare the recipe that a run is resumed with to the one that it began with.

    Args:
        saved: recipe as the run began. A top-level entry that it does not have, since an earlier version wrote it, is
            no difference.
        now: recipe as the run is to go on.
        folder: folder of the run.
        anyway: True warns of differences instead of raising.

    Raises:
        ArgumentError: the recipes differ. The message names every difference, the old value beside the new one.
    """
    found = [one for name, value in now.items() if name in saved for one in differences(saved[name], value, name)]
    if not found:
        return
    told = [f"{name}={new!r} (began with {old!r})" for name, old, new in found[:SHOWN]]
    told += [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
    if anyway:
        logger.warning("'%s' goes on with another recipe than it began with: %s", folder, ", ".join(told))
        return
    raise ArgumentError(
        "`, `".join(name for name, _, _ in found[:SHOWN]),
        f"be what the run in '{folder}' began with",
        ", ".join(told),
        "Resume with the same recipe, choose another output_dir, or pass resume='anyway' if it is meant.",
    )


def differences(old: Any, new: Any, name: str) -> Iterator[tuple[str, Any, Any]]:
    """The leaves in which two values differ: their path, the old and the new value; None where there is none."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys([*old, *new]):
            yield from differences(old.get(key), new.get(key), f"{name}.{key}" if key else name)
    elif old != new and (old == old or new == new):  # NaN is what NaN was
        yield name, old, new


def _settings(module: nn.Module) -> Iterator[tuple[str, Any]]:
    kind = type(module)
    yield "class", f"{kind.__module__}.{kind.__qualname__}"
    makers = [vars(base)["__init__"] for base in kind.__mro__ if "__init__" in vars(base)]
    given = {name for make in makers for name in inspect.signature(make).parameters}
    for name, value in vars(module).items():
        # a number that no constructor asks for may be a count of the last batch, as pytorch-metric-learning keeps them
        counted = type(value) in (int, float) and name not in given
        if not name.startswith("_") and name not in _FREE and not counted:
            leaf = _leaf(value)
            if leaf is not _UNKNOWN:
                yield name, leaf
    for name, parameter in module.named_parameters(recurse=False):
        yield name, f"{tuple(parameter.shape)} {str(parameter.dtype).removeprefix('torch.')}"


_UNKNOWN = object()


def _leaf(value: Any) -> Any:
    """A value as JSON gives it back, or `_UNKNOWN`."""
    if isinstance(value, _LEAVES):
        return value if isinstance(value, _LEAVES[:1]) or type(value) in _LEAVES else str(value)
    if isinstance(value, torch.dtype):
        return str(value)
    if isinstance(value, list | tuple):
        items = [_leaf(item) for item in value]
        if any(item is _UNKNOWN for item in items):
            return _UNKNOWN
        return items if len(items) <= LONGEST else f"{len(items)} values, {zlib.crc32(repr(items).encode()):08x}"
    if not isinstance(value, nn.Module) and callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return _UNKNOWN
