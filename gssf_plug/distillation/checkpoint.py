"""What a resumed run shares with the one that it continues: how many rows meet in a batch, and how many make a step.

transformers' Trainer goes on with any batch size, at another place in the data. Here the batch of all processes stays
what it was, so a run of P processes goes on in Q with P/Q times the rows on each; anything else is refused.

Projectors and losses on disk, beside the student and never inside it: one folder of safetensors and JSON.
"""

import copy
import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import TrainingArguments

from gssf_plug.errors import ArgumentError, CheckpointError
from gssf_plug.files import Format, load_strictly, parse_json, read_folder, write_atomically, write_folder
from gssf_plug.metric import GSSFMetric

if TYPE_CHECKING:
    from gssf_plug.distillation.distiller import Distiller

__all__ = ["check_batch", "load_parts", "save_parts", "write_batch"]

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


logger = logging.getLogger(__name__)

BATCH = "batch.json"


def write_batch(folder: Path, args: TrainingArguments, rows: int) -> None:
    """Note in a checkpoint how its batches were formed.

    Args:
        folder: of the distillation's files in a checkpoint.
        args: of the run.
        rows: of one process's batch.
    """
    noted = {"rows": rows * args.world_size, "processes": args.world_size, "steps": args.gradient_accumulation_steps}
    folder.mkdir(exist_ok=True)
    write_atomically(folder / BATCH, lambda path: path.write_text(json.dumps(noted), encoding="utf-8"))


def check_batch(folder: Path, args: TrainingArguments, rows: int) -> None:
    """Whether a run forms its batches as that of the checkpoint did; a checkpoint without a note passes.

    Raises:
        ArgumentError: another number of rows in the batch of all processes, or of batches in a step.
        CheckpointError: the note is damaged.
    """
    path = folder / BATCH
    if not path.exists():
        return
    noted = parse_json(path, path.read_text(encoding="utf-8", errors="replace"))
    if any(type(noted.get(name)) is not int for name in ("rows", "processes", "steps")):
        raise CheckpointError(path, "is damaged", "Resume from another checkpoint.")
    now = args.world_size
    if rows * now != noted["rows"]:
        raise ArgumentError(
            "per_device_train_batch_size",
            f"make batches of {noted['rows']} rows over all processes, as the run in '{folder.parent}' had",
            f"{rows} on each of {now}",
            f"Set it to {noted['rows'] / now:g}." if noted["rows"] % now == 0 else "Use another number of processes.",
        )
    if args.gradient_accumulation_steps != noted["steps"]:
        raise ArgumentError(
            "gradient_accumulation_steps",
            f"be {noted['steps']}, as in the run in '{folder.parent}'",
            args.gradient_accumulation_steps,
            "Or start anew from its weights.",
        )
    if now != noted["processes"]:
        text = "'%s' was written by %d processes and is resumed by %d: same batches, other dropout"
        logger.warning(text, folder.parent, noted["processes"], now)
