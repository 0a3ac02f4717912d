"""What one room puts into a model of transformers, saved and loaded by another that keeps such models as its parts.

attention and retrieval do not know each other. A room that changes models registers its kind of adapter here when it is
imported; a room that saves models asks here. A file names a kind and never a module: `HOMES` says where it is at home.
"""

import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

__all__ = ["AdapterKind", "describe_adapters", "fitting_adapters", "register", "restore_adapters", "save_model"]

HOMES = {"attention": "gssf_plug.attention"}  # imported only when a file holds such an adapter
NAME = re.compile(r"[^./\\\0:]{1,100}")
NAMES_LIMIT = 100


@dataclass(frozen=True)
class AdapterKind:
    """How one kind of adapter is saved with the model that it is in.

    Args:
        describe: function that gives JSON of what is in a model, `{"names": [...], "active": name, "enabled": bool}`,
            or None for a plain model.
        save: function that writes such a model into a folder: the base as transformers reads it, and the adapters
            beside it.
        restore: function that puts what `save` wrote into the base; it takes the base, the folder and the JSON.
    """

    describe: Callable[[nn.Module], dict[str, Any] | None]
    save: Callable[[nn.Module, Path], None]
    restore: Callable[[nn.Module, Path, Mapping[str, Any]], None]


_KINDS: dict[str, AdapterKind] = {}


def register(name: str, kind: AdapterKind) -> None:
    """Make a kind known; `name` stands in files and in `HOMES`."""
    _KINDS[name] = kind


def describe_adapters(model: nn.Module) -> dict[str, dict[str, Any]]:
    """JSON of every adapter in `model`, by kind; empty for a plain one.

    A kind that nobody has imported is in no model, so nothing is imported here.
    """
    found = {name: kind.describe(model) for name, kind in _KINDS.items()}
    return {name: record for name, record in found.items() if record is not None}


def fitting_adapters(saved: Any) -> bool:
    """Whether JSON that anybody may have written is a description of adapters that can be restored."""
    return isinstance(saved, dict) and bool(saved) and saved.keys() <= HOMES.keys() and all(map(_fits, saved.values()))


def _fits(record: Any) -> bool:
    if not isinstance(record, dict) or record.keys() != {"names", "active", "enabled"}:
        return False
    names = record["names"]
    if not isinstance(names, list) or not 1 <= len(names) <= NAMES_LIMIT:
        return False
    plain = all(isinstance(name, str) and NAME.fullmatch(name) for name in names)
    return plain and len(set(names)) == len(names) and record["active"] in names and type(record["enabled"]) is bool


def save_model(model: PreTrainedModel, folder: Path) -> None:
    """Write a model with whatever is in it; a plain one as its own `save_pretrained` does."""
    for kind in _KINDS.values():
        if kind.describe(model) is not None:
            kind.save(model, folder)
            return
    model.save_pretrained(folder)


def restore_adapters(model: nn.Module, folder: Path, saved: Mapping[str, Mapping[str, Any]]) -> None:
    """Put the adapters that `save_model` wrote into `folder` back into the plain `model`.

    Raises:
        CheckpointError: an adapter is missing, damaged, or of another model.
        ArgumentError: the model cannot hold the adapter.
    """
    for name, record in saved.items():
        importlib.import_module(HOMES[name])  # which registers its kind
        _KINDS[name].restore(model, folder, record)
