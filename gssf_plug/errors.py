"""The library's exceptions. A user mistake raises one of these; broken invariants of our own are asserts.

Every message says which argument or file, the rule, what came, and what to do. Tests pin the texts.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from os import PathLike
from typing import Any

__all__ = ["ArgumentError", "CheckpointError", "DataError", "GSSFError", "near_matches"]


class GSSFError(Exception):
    """Anything that gssf_plug raises on purpose. It can be pickled, and so come out of a process that reads data."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (type(self), self.args, vars(self))


def _rebuilt(kind: type[GSSFError], args: tuple[Any, ...], state: dict[str, Any]) -> GSSFError:
    """Without the constructor, which makes the text of other arguments than those that an exception keeps."""
    error = kind.__new__(kind)
    error.args = args
    vars(error).update(state)
    return error


class ArgumentError(GSSFError, ValueError):
    """An argument breaks its rule. Also a `ValueError`, so that ordinary handlers catch it.

    Args:
        argument: name of the argument, as the caller writes it.
        rule: rule that holds for a right value; it completes the sentence "`argument` must ...".
        got: value that came instead.
        remedy: one sentence that says what to do.

    Attributes:
        tap: name of the tap that could not be read; None where the error is of something else.
    """

    tap: str | None = None

    def __init__(self, argument: str, rule: str, got: object, remedy: str) -> None:
        self.argument = argument
        super().__init__(f"`{argument}` must {rule}, but got {got}. {remedy}")


class _PathError(GSSFError, ValueError):
    """What is wrong with a file or folder.

    Args:
        path: the file or folder.
        problem: what is wrong with it; it completes the sentence "`path` ...".
        remedy: one sentence that says what to do.
    """

    def __init__(self, path: str | PathLike[str], problem: str, remedy: str) -> None:
        self.path = str(path)
        super().__init__(f"'{path}' {problem}. {remedy}")


class CheckpointError(_PathError):
    """A file or folder that we should read or write is missing, damaged, foreign, too new, or cannot be written.

    Args:
        path: the file or folder.
        problem: what is wrong with it; it completes the sentence "`path` ...".
        remedy: one sentence that says what to do.
    """


class DataError(_PathError):
    """A part of a data set is missing, damaged, or not in the layout that was expected there.

    Not a `CheckpointError`, so that a program may offer a download for the one and a restart for the other.

    Args:
        path: the file or folder.
        problem: what is wrong with it; it completes the sentence "`path` ...".
        remedy: one sentence that says what to do.
    """


def near_matches(name: str, choices: Iterable[str], most: int = 3) -> str:
    """A sentence that offers the nearest of `choices`, or all of them where none is near.

    >>> near_matches("blok_diagonal", ["diagonal", "block_diagonal"])
    "Did you mean 'block_diagonal' or 'diagonal'?"
    """
    choices = sorted(choices)
    near = get_close_matches(name, choices, n=most, cutoff=0.6)
    if near:
        return f"Did you mean {' or '.join(map(repr, near))}?"
    return f"Choose from {', '.join(map(repr, choices))}."
