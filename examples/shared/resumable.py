"""A folder of runs that can be stopped: gone on with by --resume, and never thrown away without being asked."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["resumable"]


@contextmanager
def resumable(folder: Path, resume: bool) -> Iterator[None]:
    """What is run within writes into `folder`; Ctrl-C ends in one sentence.

    Args:
        folder: made where it is missing. A file "unfinished" stands in it until the runs came to their end.
        resume: whether to go on with what is there; otherwise runs that came to their end are removed first.

    Raises:
        SystemExit: runs that were stopped are there, and `resume` is False; or somebody stops these.
    """
    unfinished = folder / "unfinished"
    if not resume:
        if unfinished.exists():
            raise SystemExit(f"'{folder}' holds runs that were stopped: add --resume to go on, or delete the folder.")
        _forget(folder)
    folder.mkdir(parents=True, exist_ok=True)
    unfinished.touch()
    try:
        yield
    except KeyboardInterrupt:
        raise SystemExit(f"\nStopped; '{folder}' keeps what was done. The same with --resume goes on.") from None
    unfinished.unlink()


def _forget(folder: Path) -> None:
    """Remove the runs of an earlier call, and nothing else."""
    for file in (folder / "results.json", *folder.glob("features-seed*.safetensors")):
        file.unlink(missing_ok=True)
    for log in folder.glob("*-seed*/log.jsonl"):
        shutil.rmtree(log.parent)
