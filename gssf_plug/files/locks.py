"""Turns among processes that share a folder: a lock on the folder itself, which the system lifts when its owner dies.

Where there are no such locks (Windows, some network file systems) nobody waits: one writer is as safe there as
elsewhere, several at once are not.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["PATIENCE_S", "locked", "locked_if_free"]

PATIENCE_S = 60.0  # what happens under a lock takes milliseconds; who holds it longer was stopped
POLL_S = 0.001
OLD_S = 24 * 3600.0  # without locks: older than any save takes


@contextmanager
def locked(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold the lock of `folder` while the block runs.

    Args:
        folder: a folder that exists.
        shared: True lets others hold the lock at the same time, as readers do; False (default) holds it alone, as
            writers do.

    Raises:
        TimeoutError: another process has held the lock for a minute.
    """
    if fcntl is None:  # pragma: no cover - Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        _take(handle, folder, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)  # which also lifts the lock


@contextmanager
def locked_if_free(folder: Path) -> Iterator[bool]:
    """Hold the lock of `folder` while the block runs, and say so; False where somebody else holds it.

    Where there are no locks, a folder that has not changed for a day counts as free.
    """
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # gone meanwhile, or Windows
        yield False
        return
    try:
        yield _is_taken(handle)
    finally:
        os.close(handle)


def _is_taken(handle: int) -> bool:
    try:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except BlockingIOError:
        return False
    except OSError:  # pragma: no cover - no locks here
        pass
    return time.time() - os.fstat(handle).st_mtime > OLD_S


def _take(handle: int, folder: Path, kind: int) -> None:
    for _ in range(int(PATIENCE_S / POLL_S)):  # counted, not timed: a process that was paused has not waited
        try:
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            time.sleep(POLL_S)
        except OSError:  # pragma: no cover - no locks here
            return
    raise TimeoutError(f"another process has held '{folder}' for {PATIENCE_S:g} seconds")
