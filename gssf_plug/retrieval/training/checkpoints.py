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
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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

__all__ = ["FORMAT_VERSION", "Checkpoints", "check_folder", "make_folder"]

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
PROGRESS = "progress.json"
# torch.save reports a full disk as RuntimeError, safetensors as its own; damaged files come as any of these too.
_FAILURES = (OSError, RuntimeError, SafetensorError, EOFError, KeyError, ValueError, CheckpointException)
WHOLE = "whole"
_NAME = re.compile(r"step-\d{8,}")
_LEFTOVER = re.compile(r"\.step-\d{8,}\.(tmp|old)")
# What torch says of a whole file that holds other parameters than it is to be put into.
_FOREIGN = re.compile(r"in loading state_dict|different number of parameter groups|match the size of optimizer's group")


def check_folder(folder: Path) -> None:
    """Raise `ArgumentError` where the folder of a run is a file, or would lie inside one."""
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            remedy = "Name another folder, or move the file away."
            raise ArgumentError("output_dir", "be a folder, or the name of a new one", f"the file '{path}'", remedy)


def make_folder(folder: Path) -> None:
    """Make the folder of a run.

    Raises:
        CheckpointError: the system refuses.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(
            folder, f"cannot be made ({error})", "Choose an output_dir that may be written."
        ) from error


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: folder of the checkpoints, which is created at the first write.
        keep: number of the last checkpoints that stay, at least 1.
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
                if _LEFTOVER.fullmatch(leftover.name):
                    discard(leftover)

    def write(self, accelerator: Accelerator, step: int, progress: Mapping[str, Any]) -> None:
        """Save the state of `accelerator` and `progress` as checkpoint `step`. Every process must call it.

        Raises:
            CheckpointError: the disk refuses. It is raised on every process, and the last checkpoint is untouched.
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
            (True, gathers, partial(_save_state, accelerator, temporary)),
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
            self.prune()

    def prune(self) -> None:
        """Remove all but the last `keep`, also those that a run killed after its last checkpoint left. One process."""
        for old in self._all()[: -self.keep]:
            doomed = old.with_name(f".{old.name}.old")
            os.replace(old, doomed)
            discard(doomed)

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
            CheckpointError: the checkpoint is damaged, of another model or loss, or its weights are laid out in another
                way than those of this run.
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

    def _all(self) -> list[Path]:
        """The oldest first; another file or folder whose name begins alike is none of ours."""
        found = [path for path in self.folder.glob("step-*") if _NAME.fullmatch(path.name) and path.is_dir()]
        return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


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
    if _FOREIGN.search(str(error)):
        return CheckpointError(
            path,
            f"is of another model or loss than this run's ({reason})",
            "Keep it: it may be whole. Resume with the parts that it was written with, or choose another output_dir.",
        )
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


def _save_state(accelerator: Accelerator, temporary: Path) -> None:
    """Accelerate's state. Tensors that share memory are written once and found again, so its warning says nothing."""
    with _without_messages("accelerate.utils.other", "Removed shared tensor"):
        accelerator.save_state(str(temporary))


@contextmanager
def _without_messages(name: str, part: str) -> Iterator[None]:
    """Without the lines of one logger that hold this part."""

    def others(record: logging.LogRecord) -> bool:
        return part not in record.getMessage()

    said = logging.getLogger(name)
    said.addFilter(others)
    try:
        yield
    finally:
        said.removeFilter(others)


def _publish(temporary: Path, final: Path) -> None:
    """Everything to disk, then the rename that makes it a checkpoint, then that to disk too."""
    for file in [*temporary.rglob("*"), temporary]:
        _flush(file)
    os.replace(temporary, final)
    _flush(final.parent)


def _flush(path: Path) -> None:
    """Force a file to the disk, so that the rename is not there before the content."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        if not path.is_dir():  # some systems cannot flush a folder
            raise
    finally:
        os.close(handle)
