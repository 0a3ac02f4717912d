"""Projectors and losses on disk, beside the student and never inside it: one folder of safetensors and JSON."""

import copy
import os
from typing import TYPE_CHECKING, Any

from torch import nn

from gssf_plug.errors import CheckpointError
from gssf_plug.files import Format, load_strictly, read_folder, write_folder
from gssf_plug.metric import GSSFMetric

if TYPE_CHECKING:
    from gssf_plug.distillation.distiller import Distiller

__all__ = ["load_parts", "save_parts"]

FORMAT = Format("gssf-plug/distiller")


def save_parts(distiller: "Distiller", folder: str | os.PathLike[str]) -> None:
    """Write the trained parts of a planned distiller."""
    write_folder(folder, FORMAT, _config(distiller), _module(distiller).state_dict())


def load_parts(distiller: "Distiller", folder: str | os.PathLike[str]) -> None:
    """Read them back into a distiller with the same pairs and losses.

    Raises:
        CheckpointError: missing, damaged, or of other pairs or losses.
    """
    config, tensors = read_folder(folder, FORMAT)
    expected = _config(distiller)
    config.setdefault("metrics", expected["metrics"])  # folders of before they were written
    odd = [key for key in sorted(config.keys() | expected.keys()) if config.get(key) != expected.get(key)]
    if odd:
        raise CheckpointError(
            folder,
            f"was saved from another distiller: its {odd[0]} are {config.get(odd[0])}, not {expected.get(odd[0])}",
            "Build the Distiller as it was built then.",
        )
    module = _module(distiller)
    device = next(distiller.student.parameters()).device
    placed = {name: tensor.to(device) for name, tensor in tensors.items()}
    load_strictly(copy.deepcopy(module), placed, folder)  # all checks; then by value: optimizers hold these parameters
    module.load_state_dict(placed)


def _module(distiller: "Distiller") -> nn.Module:
    return nn.ModuleDict({"projectors": distiller.projectors, "losses": distiller.losses})


def _config(distiller: "Distiller") -> dict[str, Any]:
    return {
        "pairs": [[ours.path, theirs.path] for ours, theirs in distiller.pairs],
        "losses": [type(loss).__name__ for loss in distiller.losses],
        "metrics": [m.file_config() for loss in distiller.losses for m in loss.modules() if isinstance(m, GSSFMetric)],
    }
