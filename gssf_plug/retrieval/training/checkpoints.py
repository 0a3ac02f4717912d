"""Checkpoints of a run that may die at any moment: a folder per step, complete or absent.

    run/checkpoints/step-00000120/     Accelerate's state (weights, optimizer, scaler, generators) and progress.json
    run/checkpoints/.step-….tmp        being written, or left by a crash: never read, removed at the next start

Under FSDP2 the weights and the optimizer's state are whole (FULL_STATE_DICT) or in parts (SHARDED_STATE_DICT); either
is resumed by any number of processes, and only by a run of that layout.

A folder is written under a temporary name, flushed to disk and renamed; only then are older ones deleted, each after a
rename of its own. So whatever kills the process, the newest `step-…` is whole. The files are Accelerate's (pickle for
the optimizer): trusted, local files. To publish weights use `save_pretrained`.
"""

import json
import logging
import os
import pickle
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from safetensors import SafetensorError
from torch.distributed.checkpoint.api import CheckpointException

from gssf_plug.distributed import gather_detached
from gssf_plug.errors import ArgumentError, CheckpointError
from gssf_plug.files import discard

__all__ = ["FORMAT_VERSION", "Checkpoints", "check_recipe"]

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
PROGRESS = "progress.json"
# torch.save reports a full disk as RuntimeError, safetensors as its own; damaged files come as any of these too.
_FAILURES = (OSError, RuntimeError, SafetensorError, EOFError, KeyError, ValueError, CheckpointException)
WHOLE = "whole"


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: where they are; created at the first write.
        keep: how many of the last stay, at least 1.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def latest(self) -> Path | None:
        """The newest checkpoint, or None."""
        found = self._all()
        return found[-1] if found else None

    def clean(self) -> None:
        """Remove what a crash left half written or half deleted. One process calls it."""
        if not self.folder.is_symlink():
            for leftover in self.folder.glob(".step-*"):
                discard(leftover)

    def write(self, accelerator: Accelerator, step: int, progress: Mapping[str, Any]) -> None:
        """Save the state of `accelerator` and `progress` as checkpoint `step`. Every process must call it.

        Raises:
            CheckpointError: the disk refuses; on every process, and the last checkpoint is untouched.
        """
        final = self.folder / f"step-{step:08d}"
        if final.exists():
            return  # a resumed run that was stopped again before its first step
        temporary = self.folder / f".{final.name}.tmp"
        header = {
            "format_version": FORMAT_VERSION,
            "processes": accelerator.num_processes,
            "layout": _layout(accelerator),
        }
        main, gathers = accelerator.is_main_process, accelerator.distributed_type == DistributedType.FSDP
        phases = [
            (main, False, partial(_open, temporary, {**header, **progress})),
            (True, gathers, partial(accelerator.save_state, str(temporary))),
            (main, False, partial(_publish, temporary, final)),
        ]
        for concerned, together, phase in phases:
            failure = _attempt(phase) if concerned else None
            if failure is not None and together:  # the others wait inside it; the launcher ends them with this process
                raise self._refused(final, failure) from failure
            failed = torch.tensor([failure is not None], device=accelerator.device)
            if bool(gather_detached(failed).any()):  # also the barrier between the phases
                if main and not self.folder.is_symlink():
                    discard(temporary)
                raise self._refused(final, failure) from failure
        if main:
            self._prune()

    def describe(self, path: Path) -> dict[str, Any]:
        """The progress that checkpoint `path` was written with; nothing is loaded yet.

        Raises:
            CheckpointError: it is damaged, or of a newer format.
        """
        try:
            progress: dict[str, Any] = json.loads((path / PROGRESS).read_text(encoding="utf-8"))
            version = progress["format_version"]
        except (OSError, ValueError, KeyError) as error:
            raise _damaged(path, error) from error
        if version > FORMAT_VERSION:
            problem = f"is in format version {version}, and this gssf-plug reads up to {FORMAT_VERSION}"
            raise CheckpointError(path, problem, "Upgrade gssf-plug to resume it.")
        return progress

    def load(self, accelerator: Accelerator, path: Path) -> None:
        """Load checkpoint `path` into what `accelerator` prepared, the generators last.

        Raises:
            CheckpointError: it is damaged, or its weights are laid out in another way than those of this run.
        """
        described, now = self.describe(path), accelerator.num_processes
        written = described["processes"]
        _check_layout(path, described.get("layout", WHOLE), _layout(accelerator), written == now)
        try:
            if written == now:  # Accelerate passes over missing generators in silence
                torch.load(path / f"random_states_{accelerator.process_index}.pkl", weights_only=False)
            accelerator.load_state(str(path))
        except (*_FAILURES, pickle.UnpicklingError) as error:
            raise _damaged(path, error) from error
        if written != now:
            logger.warning(
                "'%s' was written by %d processes and is resumed by %d: same batches, other dropout", path, written, now
            )

    def _refused(self, final: Path, failure: BaseException | None) -> CheckpointError:
        latest = self.latest()
        kept = f"'{latest}' is untouched" if latest is not None else "there is no earlier one"
        reason = failure if failure is not None else "another process failed; see its message"
        return CheckpointError(
            final,
            f"could not be written ({reason})",
            f"Free some disk space, or make the folder writable, and call train(resume=True); {kept}.",
        )

    def _prune(self) -> None:
        for old in self._all()[: -self.keep]:
            doomed = old.with_name(f".{old.name}.old")
            os.replace(old, doomed)
            discard(doomed)

    def _all(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))


def check_recipe(saved: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Raise `ArgumentError` where a run would be resumed with another recipe than it began with, naming the first."""
    for name, value in now.items():
        if saved.get(name) != value:
            raise ArgumentError(
                name,
                f"be what the run in '{folder}' began with, {saved.get(name)!r}",
                repr(value),
                "Resume with the same recipe, or choose another output_dir.",
            )


def _layout(accelerator: Accelerator) -> str:
    """How the weights in a checkpoint lie: what Accelerate writes depends on it."""
    if accelerator.distributed_type == DistributedType.FSDP:
        return f"FSDP2, {accelerator.state.fsdp_plugin.state_dict_type.name}"
    return "DeepSpeed" if accelerator.distributed_type == DistributedType.DEEPSPEED else WHOLE


def _check_layout(path: Path, written: str, now: str, same_processes: bool) -> None:
    if written != now:
        raise CheckpointError(
            path,
            f"was written with weights that lie otherwise ({written}) than those of this run ({now})",
            "Launch it with the configuration that it began with, or start anew from its best weights.",
        )
    if now == "DeepSpeed" and not same_processes:
        raise CheckpointError(path, "was written by another number of processes", "DeepSpeed asks for the same.")


def _damaged(path: Path, error: BaseException) -> CheckpointError:
    reason = str(error).partition("\n")[0]  # torch.load adds a page of advice
    return CheckpointError(
        path,
        f"is damaged ({type(error).__name__}: {reason})",
        f"Delete '{path}' to resume from the checkpoint before it, or start anew in another folder.",
    )


def _attempt(phase: Callable[[], object]) -> BaseException | None:
    try:
        phase()
    except _FAILURES as error:
        return error
    return None


def _open(temporary: Path, progress: Mapping[str, Any]) -> None:
    if temporary.parent.is_symlink():
        raise OSError(
            f"'{temporary.parent}' is a link, and nothing is written through one; link the output_dir instead"
        )
    discard(temporary)
    temporary.mkdir(parents=True)
    (temporary / PROGRESS).write_text(json.dumps(progress, indent=2), encoding="utf-8")


def _publish(temporary: Path, final: Path) -> None:
    """Everything to disk, then the rename that makes it a checkpoint, then that to disk too."""
    for file in [*temporary.rglob("*"), temporary]:
        _flush(file)
    os.replace(temporary, final)
    _flush(final.parent)


def _flush(path: Path) -> None:
    """To disk, so that the rename is not on it before the content."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        if not path.is_dir():  # some systems cannot flush a folder
            raise
    finally:
        os.close(handle)
