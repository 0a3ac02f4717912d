"""Where files are made ready before anybody sees them, and how they come to their names without following a link.

    staging(folder)             a hidden folder inside, for one save; those of killed saves are removed first
    write_atomically(path, …)   one file, made there and renamed
    own_folder(root, name)      a folder below one that we write into: a link in its place is replaced, never followed

The folder that a caller names may be a link, since it is the caller's word; what lies below it may come from anybody.
There only real folders are entered: a link is taken away, and what it points to stays as it is.
"""

import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePath
from typing import Any

from gssf_plug.errors import ArgumentError
from gssf_plug.files.locks import locked, locked_if_free

__all__ = ["discard", "flush", "is_own", "named_folder", "own_folder", "staging", "write_atomically"]

PREFIX = ".saving-"


def named_folder(argument: str, folder: str | os.PathLike[str]) -> Path:
    """The folder that a caller names for a save.

    Args:
        argument: name of the caller's argument, for the error.
        folder: value that the caller gave.

    Raises:
        ArgumentError: the value is no path, or an empty one, which would be the current folder.
    """
    given: Any = folder
    if not isinstance(given, str | os.PathLike) or not isinstance(os.fspath(given), str):
        raise ArgumentError(argument, "be a path", f"{given!r}", "Give the folder to save into.")
    if not os.fspath(given).strip() or "\0" in os.fspath(given):
        raise ArgumentError(argument, "name a folder", repr(given), "Write '.' for the current folder.")
    return Path(given)


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """A new hidden folder in `folder`, which must exist; removed at the end with whatever is left in it.

    It is locked while the block runs: so a later save can tell what a killed one left, and removes it.
    """
    for leftover in folder.glob(f"{PREFIX}*"):
        # whoever made it holds its lock while it lives
        with locked_if_free(leftover) as free:
            if free or leftover.is_symlink():
                discard(leftover)
    with ExitStack() as held:
        staged = _claimed(folder, held)
        try:
            staged.chmod(0o755)
            yield staged
        finally:
            discard(staged)


def _claimed(folder: Path, held: ExitStack) -> Path:
    while True:
        staged = Path(tempfile.mkdtemp(prefix=PREFIX, dir=folder))
        try:
            held.enter_context(locked(staged))
        except FileNotFoundError:
            continue
        if staged.exists():  # another save may have taken it for a leftover before it was locked
            return staged


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write(temporary_path)`, flush it to disk, and rename it to `path`; on failure nothing is left behind.

    A symbolic link at `path` is replaced, what it points to stays: saving into a folder of the Hub's cache spoils none.
    """
    with staging(path.parent) as staged:
        temporary = staged / path.name
        write(temporary)
        flush(temporary)
        os.replace(temporary, path)


def own_folder(root: Path, name: str | PurePath) -> Path:
    """The folder `name` below `root`, made where it is missing; a link on the way is replaced by a folder.

    Raises:
        OSError: a file is in the place of the folder, or the disk refuses.
    """
    folder = root
    for part in PurePath(name).parts:
        folder = folder / part
        if folder.is_symlink():
            folder.unlink()
        folder.mkdir(exist_ok=True)
    return folder


def is_own(root: Path, name: str | PurePath) -> bool:
    """Whether `name` is a regular file below `root` and no link leads to it."""
    path = root
    for part in PurePath(name).parts:
        path = path / part
        if path.is_symlink():
            return False
    return path.is_file()


def discard(path: Path) -> None:
    """Remove a folder with all that is in it, or a link; errors are left to the next save."""
    if path.is_symlink():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)  # enters no link


def flush(path: Path) -> None:
    """A written file to disk, so that no rename is there before the content; readable by all."""
    path.chmod(stat.S_IRUSR | stat.S_IWUSR | stat.S_IRGRP | stat.S_IROTH)
    with path.open("rb+") as file:
        os.fsync(file.fileno())
