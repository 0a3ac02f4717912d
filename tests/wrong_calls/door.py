"""A public function with one right call, and how wrong calls of it end."""

import inspect
import random
import signal
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from wrong_calls.values import CHANGES, VALUES, Change, Value

from gssf_plug import GSSFMetric
from gssf_plug.arguments import holds_floats
from gssf_plug.errors import GSSFError

__all__ = ["Call", "Door", "features", "label_ids", "metric", "outcome", "tokens", "wrong_calls"]

SECONDS = 60  # after which a call counts as hanging
PAIRS = 20  # calls of each door with two wrong arguments


class Door(NamedTuple):
    """A public function with one right call: `arguments` makes it; `shape` is that of its result, where it has one."""

    call: Callable[..., Any]
    arguments: Callable[[], dict[str, Any]]
    shape: Callable[[dict[str, Any]], tuple[int, ...]] | None = None
    nan_passes: bool = False  # as documented: what was NaN before stays NaN
    check: Callable[[Any], None] | None = None
    right: tuple[tuple[str, str], ...] = ()  # parameters with values that are right, and would take long
    left_out: tuple[str, ...] = ()  # parameters that `arguments` leaves out, each with a reason beside it
    open: tuple[str, ...] = ()  # parameters whose annotation is a protocol, which strange things may keep
    name: str = ""  # where the function's own says too little

    @property
    def title(self) -> str:
        """How the door is told from others."""
        return self.name or getattr(self.call, "__qualname__", type(self.call).__name__)


class Call(NamedTuple):
    """A door with one or two arguments that are wrong, by name."""

    door: Door
    wrong: tuple[tuple[str, Value | Change], ...]

    def __str__(self) -> str:
        return f"{self.door.title}({', '.join(f'{name}={value.name}' for name, value in self.wrong)})"


def features(rows: int = 6, width: int = 8) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(rows))


def tokens() -> Tensor:
    return torch.randn(6, 3, 8, generator=torch.Generator().manual_seed(0))


def label_ids() -> Tensor:
    return torch.arange(6) % 3


def metric() -> GSSFMetric:
    return GSSFMetric(8, block_size=4)


def wrong_calls(doors: Sequence[Door]) -> Iterator[Call]:
    """Every parameter of every door with every value and every change, and some pairs of parameters."""
    for door in doors:
        right = door.arguments()
        named = [name for name in inspect.signature(door.call).parameters if name in right]
        single = [(name, value) for name in named for value in _wrong(door, name, right[name])]
        yield from (Call(door, (one,)) for one in single)
        choose = random.Random(door.title)
        for _ in range(PAIRS if len(named) > 1 else 0):
            first, second = choose.sample(named, 2)
            pair = [choose.choice([one for one in single if one[0] == name]) for name in (first, second)]
            yield Call(door, tuple(pair))


def _wrong(door: Door, name: str, right: Any) -> Iterator[Value | Change]:
    known = {value for parameter, value in door.right if parameter == name}
    fitting = [change for change in CHANGES if isinstance(right, change.of) and not isinstance(right, bool)]
    yield from (wrong for wrong in (*VALUES, *fitting) if wrong.name not in known)


class Hanging(BaseException):
    """The time of a call is over."""


def _over(*_: object) -> None:
    raise Hanging


def outcome(call: Call) -> tuple[str, str]:
    """How a call ends, "refused", "right", "foreign", "silent" or "hangs", and the detail of it."""
    door = call.door
    try:
        given = door.arguments()
        for name, value in call.wrong:
            given[name] = value.make(given[name]) if isinstance(value, Change) else value.make()
    except (RuntimeError, TypeError, ValueError):  # this argument cannot be changed so
        return "impossible", ""
    before = signal.signal(signal.SIGALRM, _over)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        result = door.call(**given)
        if door.check is not None:
            door.check(result)
    except GSSFError:
        return "refused", ""
    except Hanging:
        return "hangs", ""
    except Exception as error:
        return "foreign", f"{type(error).__name__}: {error}"[:140]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return _taken(call, given, result)


def _taken(call: Call, given: dict[str, Any], result: Any) -> tuple[str, str]:
    """Whether a result is right."""
    door, names = call.door, [value.name for _, value in call.wrong]
    for parameter, value in call.wrong:
        annotation = inspect.signature(door.call).parameters[parameter].annotation
        passes = door.nan_passes and "matrix" in value.name
        closed = parameter not in door.open and not passes
        if value.kind is not None and closed and not may_be(annotation, value.kind):
            return "silent", "taken, which its annotation rules out"
    if holds_nan(result) and not (door.nan_passes and {"NaN matrix", "infinite matrix"} & set(names)):
        return "silent", "NaN"
    if door.shape is not None and tuple(result.shape) != tuple(door.shape(given)):
        return "silent", f"shape {tuple(result.shape)}"
    return "right", ""


def may_be(annotation: Any, kind: type) -> bool:
    """Whether an annotation holds this type; `Any` holds all of them."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return any(may_be(part, kind) for part in typing.get_args(annotation))
    if typing.get_origin(annotation) is typing.Literal:
        return any(isinstance(one, kind) for one in typing.get_args(annotation))
    return annotation in (Any, kind) or (annotation is None and kind is type(None))


def holds_nan(result: Any) -> bool:
    """Whether NaN stands somewhere in a result."""
    if isinstance(result, float):
        return result != result
    if isinstance(result, Tensor):
        return holds_floats(result) and bool(result.isnan().any())
    if isinstance(result, np.ndarray):
        return result.dtype.kind == "f" and bool(np.isnan(result).any())
    if isinstance(result, nn.Module):
        return any(holds_nan(value.detach()) for value in result.state_dict().values() if isinstance(value, Tensor))
    if isinstance(result, Mapping):
        return any(map(holds_nan, result.values()))
    return isinstance(result, tuple | list) and any(map(holds_nan, result))
