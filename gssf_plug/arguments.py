"""What an argument must be, whatever the room: flags, counts, numbers, names, tensors, modules, functions.

A check raises `ArgumentError`; a name that begins with `checked_` also returns the value as the type that was asked
for. A predicate (`holds_floats`) is for those who say themselves what came.
"""

import inspect
import math
import operator
import os
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn

from gssf_plug.errors import ArgumentError, near_matches

__all__ = [
    "FLOATS",
    "LARGEST",
    "WHOLE",
    "check_choice",
    "check_function",
    "check_module",
    "check_path",
    "check_positive",
    "check_text",
    "checked_count",
    "checked_epoch",
    "checked_flag",
    "checked_number",
    "checked_seed",
    "described",
    "has_rows",
    "holds_floats",
    "holds_whole_numbers",
    "is_dense",
    "listed",
]

WHOLE = "be a whole number of at least 1"
LARGEST = 2**31  # of a count that memory is taken for
SEEDS = 2**63  # of torch's and numpy's generators

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def checked_flag(name: str, value: object) -> bool:
    """True or False, numpy's too, as a bool; a text or number would be taken for one of them silently.

    Raises:
        ArgumentError: the value is neither.
    """
    if not isinstance(value, bool | np.bool_):
        raise ArgumentError(name, "be True or False", repr(value), "Write it without quotes.")
    return bool(value)


def check_positive(name: str, value: int, remedy: str) -> None:
    """A whole number of at least 1.

    Raises:
        ArgumentError: the value is below 1 or no whole number.
    """
    checked_count(name, value, remedy, rule=WHOLE)


def checked_count(
    name: str, value: object, remedy: str, *, rule: str = "be at least 1", least: int = 1, most: int | None = None
) -> int:
    """A whole number of at least `least`, numpy's and zero-dimensional tensors' too, as an int.

    Raises:
        ArgumentError: the value is below `least`, above `most`, or no whole number; `rule` says which is right.
    """
    try:
        truth = isinstance(value, bool | np.bool_) or (isinstance(value, Tensor) and value.dtype == torch.bool)
        number = None if truth else operator.index(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):
        number = None
    if number is None or number < least or (most is not None and number > most):
        raise ArgumentError(name, rule, repr(value), remedy)
    return number


def checked_seed(value: object) -> int:
    """A seed: a whole number of at least 0.

    Raises:
        ArgumentError: the value is negative, of more than 63 bits, or no whole number.
    """
    return checked_count("seed", value, "Use 0 or more.", rule="be at least 0", least=0, most=SEEDS - 1)


def checked_epoch(value: object) -> int:
    """The number of an epoch, from 0.

    Raises:
        ArgumentError: the value is negative or no whole number.
    """
    return checked_count("epoch", value, "Count them from 0.", rule="be at least 0", least=0, most=SEEDS - 1)


def checked_number(
    name: str, value: object, rule: str, remedy: str, right: Callable[[float], bool] = lambda number: True
) -> float:
    """A finite number, numpy's too, as a float.

    Raises:
        ArgumentError: the value is no number, a truth value, NaN or infinite, or not `right`; `rule` says which is
            right.
    """
    real = isinstance(value, Real) and not isinstance(value, bool)
    try:
        number = float(value) if real else math.nan  # type: ignore[arg-type]
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or not right(number):
        raise ArgumentError(name, rule, repr(value), remedy)
    return number


def check_text(name: str, value: object, rule: str, remedy: str) -> None:
    """A string.

    Raises:
        ArgumentError: the value is something else, bytes too.
    """
    if not isinstance(value, str):
        raise ArgumentError(name, rule, described(value), remedy)


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """One of some words.

    Raises:
        ArgumentError: the value is none of them; the nearest are named.
    """
    known = tuple(choices)
    if not isinstance(value, str) or value not in known:
        raise ArgumentError(name, f"be one of {known}", repr(value), near_matches(str(value), known))


def check_path(name: str, value: object) -> None:
    """A path, as a string or `os.PathLike` of one.

    Raises:
        ArgumentError: the value is none, or an empty string.
    """
    try:
        text = os.fspath(value)  # type: ignore[call-overload]
    except TypeError:
        text = None
    if not isinstance(text, str) or not text or "\0" in text:
        raise ArgumentError(name, "be a path", described(value), "Give a string or a pathlib.Path.")


def check_module(name: str, value: object, remedy: str, *, optional: bool = False) -> None:
    """A module of torch.nn, or None where it is `optional`.

    Raises:
        ArgumentError: the value is something else, such as the class of a module.
    """
    if not isinstance(value, nn.Module) and not (optional and value is None):
        rule = f"be {'None or ' if optional else ''}a module of torch.nn"
        raise ArgumentError(name, rule, described(value), remedy)


def check_function(name: str, value: object, remedy: str, *, takes: int | None = None, optional: bool = False) -> None:
    """Something that can be called with so many arguments, or None where it is `optional`.

    Args:
        name: name of the argument, as the caller writes it.
        value: what came.
        remedy: one sentence that says what to do.
        takes: number of arguments that it is called with; None (default) asks only that it can be called.
        optional: whether None is right, too.

    Raises:
        ArgumentError: the value cannot be called, or its signature says that it takes another number of arguments.
    """
    if optional and value is None:
        return
    prefix = "be None or " if optional else "be "
    if not callable(value):
        raise ArgumentError(name, f"{prefix}a function", described(value), remedy)
    if takes is not None and not _may_take(value, takes):
        raise ArgumentError(name, f"{prefix}a function of {takes} arguments", described(value), remedy)


def has_rows(value: object) -> bool:
    """Whether rows can be asked for by number, and counted; a mapping, such as a `DatasetDict`, has names instead."""
    if isinstance(value, str | bytes | Mapping | type) or not hasattr(value, "__getitem__"):
        return False
    try:
        len(value)  # type: ignore[arg-type]
    except (RuntimeError, TypeError):  # streams; arrays and tensors of no dimension, nested tensors
        return False
    return True


def is_dense(value: object) -> TypeGuard[Tensor]:
    """Whether this is a tensor with its values, each in its place: no sparse, nested, quantized or meta one."""
    if not isinstance(value, Tensor):
        return False
    return value.layout == torch.strided and not (value.is_nested or value.is_quantized or value.is_meta)


def holds_floats(value: object) -> TypeGuard[Tensor]:
    """Whether this is a dense tensor in one of `FLOATS`; the eight-bit floats are for storage alone."""
    return is_dense(value) and value.dtype in FLOATS


def holds_whole_numbers(value: object) -> TypeGuard[Tensor]:
    """Whether this is a dense tensor of whole numbers; truth values are none."""
    return is_dense(value) and not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)


def listed(value: object) -> tuple[Any, ...] | None:
    """What a collection holds, a generator too, read once; None for texts and for what holds nothing one by one."""
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        return None
    try:
        return tuple(value)
    except (RuntimeError, TypeError):  # arrays and tensors of no dimension, sparse and nested tensors
        return None


def described(value: object) -> str:
    """What came, in the few words that tell it from what is right."""
    if not isinstance(value, Tensor):
        return f"the class {value.__name__}" if isinstance(value, type) else _kind(value)
    if value.is_nested:
        return f"a nested tensor of {value.dtype}"
    place = " on the meta device" if value.is_meta else ""
    layout = "" if value.layout == torch.strided else f" of layout {value.layout}"
    return f"{value.dtype}{layout} of shape {tuple(value.shape)}{place}"


def _kind(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} of shape {value.shape}"
    return type(value).__name__


def _may_take(function: Callable[..., Any], count: int) -> bool:
    try:
        signature = inspect.signature(function.forward if isinstance(function, nn.Module) else function)
    except (TypeError, ValueError):  # some builtins tell nothing of themselves
        return True
    try:
        signature.bind(*[None] * count)
    except TypeError:
        return False
    return True
