"""Saved folders as a stranger might have changed them, consistent in themselves: configuration, weights and digest."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from gssf_plug.files.folders import DIGEST_KEY, text_digest


def copy(source: Path, target: Path) -> Path:
    for path in sorted(source.rglob("*")):
        if path.is_file():
            (target / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            (target / path.relative_to(source)).write_bytes(path.read_bytes())
    return target


def edit(folder: Path, change: Callable[[dict[str, Any]], object], name: str = "config.json") -> None:
    """Change the configuration and keep the pair consistent, as a hostile writer would."""
    config = json.loads((folder / name).read_text())
    change(config)
    rewrite(folder, json.dumps(config), name)


def rewrite(folder: Path, text: str, name: str = "config.json", tensors: dict[str, Tensor] | None = None) -> None:
    (folder / name).write_text(text)
    weights = folder / name.replace("config.json", "model.safetensors")
    save_file(tensors if tensors is not None else load_file(weights), weights, metadata={DIGEST_KEY: text_digest(text)})


def retensor(folder: Path, **tensors: Tensor) -> None:
    """Replace tensors of a metric and keep the pair consistent."""
    every = {**load_file(folder / "model.safetensors"), **tensors}
    rewrite(folder, (folder / "config.json").read_text(), tensors=every)
