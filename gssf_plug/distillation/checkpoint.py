"""What a checkpoint holds, and what a resumed run must take from it.

Projectors and losses stand on disk beside the student and never inside it: one folder of safetensors and JSON.

The batch of all processes stays what it was. transformers' Trainer goes on with any batch size, at another place in the
data; here a run of P processes goes on in Q with P/Q times the rows on each, and anything else is refused.

The student comes back whole. transformers' Trainer reads a checkpoint's raw file into the module and ignores names that
do not fit, but many models are saved under other names than they have in memory (ViT, DeiT, Swin, LLaVA, Mixtral, …):
their encoders would silently stay random. `restore_student` reads the folder as `from_pretrained` does.
"""

import copy
import functools
import inspect
import itertools
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainingArguments

from gssf_plug.errors import ArgumentError, CheckpointError
from gssf_plug.files import Format, load_strictly, own_folder, parse_json, read_folder, write_atomically, write_folder

__all__ = ["check_batch", "find_checkpoint", "load_parts", "restore_student", "save_parts", "write_batch"]

FORMAT = Format("gssf-plug/distiller")


def save_parts(parts: nn.Module, config: Mapping[str, Any], folder: str | os.PathLike[str]) -> None:
    """Write the trained parts of a planned distiller.

    Args:
        parts: module that holds the projectors and losses, and nothing else.
        config: JSON of what they were built from.
        folder: folder to write, which is created where it is missing.
    """
    write_folder(folder, FORMAT, dict(config), parts.state_dict(), argument="folder")


def load_parts(
    parts: nn.Module, config: Mapping[str, Any], folder: str | os.PathLike[str], device: torch.device
) -> None:
    """Read them back into parts that were built in the same way, by value: optimizers hold these parameters.

    Args:
        parts: module with the same projectors and losses that were saved.
        config: JSON of what these were built from.
        folder: folder that `save_parts` wrote.
        device: device on which they live.

    Raises:
        CheckpointError: the folder is missing, damaged, or of other pairs or losses.
    """
    saved, tensors = read_folder(folder, FORMAT)
    saved.setdefault("metrics", config["metrics"])  # folders of before they were written
    if isinstance(saved["metrics"], list) and len(saved["metrics"]) == len(config["metrics"]):  # or "grouped" was
        pairs = zip(saved["metrics"], config["metrics"], strict=True)
        saved["metrics"] = [{"grouped": new["grouped"], **old} if isinstance(old, dict) else old for old, new in pairs]
    odd = [key for key in sorted(saved.keys() | config.keys()) if saved.get(key) != config.get(key)]
    if odd:
        raise CheckpointError(
            folder,
            f"was saved from another distiller: its {odd[0]} are {saved.get(odd[0])}, not {config.get(odd[0])}",
            "Build the Distiller as it was built then.",
        )
    placed = {name: tensor.to(device) for name, tensor in tensors.items()}
    load_strictly(copy.deepcopy(parts), placed, folder)  # all checks, on a copy
    parts.load_state_dict(placed)


logger = logging.getLogger(__name__)

BATCH = "batch.json"


def write_batch(folder: Path, args: TrainingArguments, rows: int) -> None:
    """Note in a checkpoint how its batches were formed.

    Args:
        folder: folder of the distillation's files in a checkpoint.
        args: training arguments of the run.
        rows: number of rows in the batch of one process.
    """
    noted = {"rows": rows * args.world_size, "processes": args.world_size, "steps": args.gradient_accumulation_steps}
    own_folder(folder.parent, folder.name)
    write_atomically(folder / BATCH, lambda path: path.write_text(json.dumps(noted), encoding="utf-8"))


def check_batch(folder: Path, args: TrainingArguments, rows: int) -> None:
    """Whether a run forms its batches as that of the checkpoint did; a checkpoint without a note passes.

    Raises:
        ArgumentError: the batch of all processes together has another number of rows than before, or a step another
            number of batches.
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


def find_checkpoint(asked: bool | str | os.PathLike[str], runs: str | os.PathLike[str]) -> str:
    """The checkpoint to go on from; one that a killed process left unfinished is none.

    transformers' Trainer writes a checkpoint file by file under its final name, trainer_state.json last, and resumes
    from the last folder, whatever is in it: without optimizer.pt it goes on silently with a new optimizer.

    Args:
        asked: True for the last checkpoint of the run, or the folder of one.
        runs: output folder of the run.

    Raises:
        CheckpointError: the folder that was asked for is unfinished, or the run has no finished one.
    """
    if not isinstance(asked, bool):
        if _is_finished(Path(asked)):
            return os.fspath(asked)
        raise CheckpointError(
            asked, "is no finished checkpoint", "Give an earlier one, or resume_from_checkpoint=True."
        )
    numbered = [(folder.name.removeprefix("checkpoint-"), folder) for folder in Path(runs).glob("checkpoint-*")]
    folders = [folder for _, folder in sorted((int(n), folder) for n, folder in numbered if n.isdigit())]
    finished = [folder for folder in folders if _is_finished(folder)]
    if not finished:
        raise CheckpointError(runs, "holds no finished checkpoint", "Train without resume_from_checkpoint.")
    if finished[-1] != folders[-1]:
        logger.warning("'%s' was not finished; going on from '%s'", folders[-1], finished[-1])
    return str(finished[-1])


def _is_finished(folder: Path) -> bool:
    path = folder / "trainer_state.json"
    try:
        return isinstance(json.loads(path.read_text(encoding="utf-8")), dict)
    except (OSError, ValueError):
        return False


def restore_student(student: nn.Module, folder: str | os.PathLike[str]) -> None:
    """Give the student every tensor of a checkpoint, by value; called after Trainer has read the raw file into it.

    Nothing is done where the folder holds no weights of a whole model (adapters, a sentence transformer's modules): the
    Trainer underneath reads those itself.

    Args:
        student: the model that is trained. Its parameters stay the same objects, so that optimizers may hold them.
        folder: folder of a checkpoint of a Trainer.

    Raises:
        CheckpointError: the checkpoint lacks a tensor of the student, or holds one that the student does not have. The
            student may then hold a part of the checkpoint: build it anew.
    """
    saved = _saved_names(Path(folder))
    if not saved:
        return
    plain = getattr(student, "_orig_mod", student)
    aliases: dict[int, set[str]] = {}
    for name, value in plain.state_dict(keep_vars=True).items():
        aliases.setdefault(id(value), set()).add(name)
    own, read, unknown = plain.state_dict(), set(saved), saved - plain.state_dict().keys()
    if isinstance(plain, PreTrainedModel) and (unknown or own.keys() - saved):
        found, unknown = _read_pretrained(plain, folder)
        unknown -= own.keys()  # adapters inside the model keep their names; the raw file gave them
        with torch.no_grad():
            for name in found.keys() & own.keys():
                own[name].copy_(found[name])
        read |= found.keys()
    lacking = sorted(
        min(names) for names in aliases.values() if not names & read
    )  # one name of a tied tensor is enough
    if lacking or unknown:
        kind, names = ("lacks", lacking) if lacking else ("holds more than the student has:", sorted(unknown))
        raise CheckpointError(
            folder,
            f"{kind} {names[0]!r} ({len(names)} of its {len(own)} tensors)",
            "Give the student that was trained there, built from the same configuration.",
        )


def _saved_names(folder: Path) -> set[str]:
    """Names of the tensors in a folder's weight files of a whole model; nothing of them is read."""
    names: set[str] = set()
    if (folder / "modules.json").exists():  # of sentence-transformers, whose trainer reads module by module, strictly
        return names
    for file in sorted(folder.glob("model*.safetensors")):
        with safe_open(file, "pt") as tensors:
            names |= set(tensors.keys())
    for file in sorted(folder.glob("pytorch_model*.bin")):
        names |= set(torch.load(file, map_location="meta", weights_only=True))
    return names


def _read_pretrained(model: PreTrainedModel, folder: str | os.PathLike[str]) -> tuple[dict[str, Tensor], set[str]]:
    """What `from_pretrained` reads from a folder under the names in memory, and the names that it could not place."""
    dtypes = {value.dtype for value in model.state_dict().values() if value.is_floating_point()}
    read: Any = type(model).from_pretrained  # its annotation knows no notes
    try:
        loaded, notes = read(
            folder,
            config=copy.deepcopy(model.config),
            dtype=functools.reduce(torch.promote_types, dtypes),  # no tensor loses a digit on the way
            output_loading_info=True,
            **_construction(model),
        )
    except (AttributeError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            folder,
            f"holds other names than {type(model).__name__} has in memory, and its from_pretrained fails: {error}",
            "Start anew from the weights, or give the student that was trained there.",
        ) from error
    missing = set(notes["missing_keys"])
    return {k: v for k, v in loaded.state_dict().items() if k not in missing}, set(notes["unexpected_keys"])


def _construction(model: PreTrainedModel) -> dict[str, bool]:
    """The switches that a model was constructed with (`add_pooling_layer=False`), seen by the names of its tensors."""
    switches = [name for name, p in inspect.signature(type(model)).parameters.items() if isinstance(p.default, bool)]
    for values in itertools.product((True, False), repeat=len(switches)):
        chosen = dict(zip(switches, values, strict=True))
        with torch.device("meta"):  # no memory, no initialisation
            if type(model)(copy.deepcopy(model.config), **chosen).state_dict().keys() == model.state_dict().keys():
                return chosen
    return {}
