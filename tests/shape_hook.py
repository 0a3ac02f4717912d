"""The shapes and dtypes in signatures, checked while tests run.

jaxtyping's import hook decorates all functions with `jaxtyping.jaxtyped`, which binds the arguments of every call and
runs beartype twice: half the time of this suite. Whether a call agrees with its annotations depends on the types,
dtypes and shapes that it meets and on nothing else (but where a size is written "{argument}"). So `tests/conftest.py`
puts the `jaxtyped` of this module in its place: functions without arrays stay as they are, and the others ask jaxtyping
once about every such combination.
"""

import dataclasses
import functools
import inspect
import threading
import types
import typing
from collections.abc import Callable, Hashable, Mapping, Set
from typing import Any, get_args

import jaxtyping
import numpy as np
from beartype import beartype
from jaxtyping import AbstractArray, config
from torch import Tensor

every_call = jaxtyping.jaxtyped  # checks each call, whatever it has seen before


def check_shapes(function: Callable[..., Any]) -> Callable[..., Any]:
    """The checker of the hook: array annotations only.

    beartype alone would also check `Sequence[str]`, `Path`, … (mypy does that, and our own errors are what a user
    should see) and refuses `typing.Self` in functions that it decorates one by one.
    """
    annotations = function.__annotations__
    function.__annotations__ = {name: hint for name, hint in annotations.items() if holds_array(hint)}
    return beartype(function)


def holds_array(hint: object) -> bool:
    return bool(arrays_in(hint))


def arrays_in(hint: object) -> list[type[AbstractArray]]:
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return [hint]
    return [array for part in get_args(hint) for array in arrays_in(part)]


def jaxtyped(function: Any = None, *, typechecker: Callable[..., Any]) -> Any:
    """Like `jaxtyping.jaxtyped(typechecker=…)`, for functions, methods of every kind, properties and dataclasses."""
    again = functools.partial(jaxtyped, typechecker=typechecker)
    if function is None:
        return again
    if isinstance(function, (classmethod, staticmethod)):
        return type(function)(again(function.__func__))
    if isinstance(function, property):
        parts = (function.fget, function.fset, function.fdel)
        return property(*(part and again(part) for part in parts))
    if inspect.isclass(function):
        if dataclasses.is_dataclass(function) and "__init__" in vars(function):
            function.__init__ = again(function.__init__)
        return function
    arrays = {
        name: found for name, hint in function.__annotations__.items() if (found := arrays_in(_hint(hint, function)))
    }
    if not arrays:
        return function
    if any("{" in array.dim_str for found in arrays.values() for array in found):
        return every_call(function, typechecker=typechecker)
    return _once_for_each_look(function, arrays.keys(), typechecker)


def _hint(hint: Any, function: Callable[..., Any]) -> Any:
    if not isinstance(hint, str):
        return hint
    try:
        return typing.get_type_hints(types.SimpleNamespace(__annotations__={"x": hint}), function.__globals__)["x"]
    except NameError:  # of a class that is not defined yet: no array
        return object


def _once_for_each_look(
    function: Callable[..., Any], arrays: Set[str], typechecker: Callable[..., Any]
) -> Callable[..., Any]:
    """Arrays are in the annotations of these parameters, "return" among them."""
    whole = every_call(function, typechecker=typechecker)
    known: set[Hashable] = set()
    parameters = inspect.signature(function).parameters
    names = [name for name, one in parameters.items() if one.kind is not one.KEYWORD_ONLY]
    asked = [name in arrays for name in names]
    free = parameters.keys() - arrays
    given = threading.local()

    def look_of_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Hashable:
        places = [look(arg) for arg, is_asked in zip(args, asked, strict=False) if is_asked]
        rest = [look(arg) for arg in args[len(names) :]]  # of `*args`, beyond its first
        named = [(name, look(arg)) for name, arg in kwargs.items() if name not in free]  # or of `**kwargs`
        return (len(args), *places, *rest, *named)

    @functools.cache
    def result_checker() -> Callable[..., Any]:
        def give(*_: Any, **__: Any) -> Any:
            return given.result

        # with the globals of the function, in which jaxtyping looks up annotations that are strings
        same = types.FunctionType(give.__code__, function.__globals__, closure=give.__closure__)
        return every_call(functools.update_wrapper(same, function), typechecker=typechecker)

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        if config.jaxtyping_disable:
            return function(*args, **kwargs)
        seen = (call := look_of_call(args, kwargs)) in known
        result = (function if seen else whole)(*args, **kwargs)
        both = (call, look(result)) if "return" in arrays else call
        if seen and both not in known:
            given.result = result
            result_checker()(*args, **kwargs)
        known.update((call, both))
        return result

    return wrapped


def look(value: Any) -> Hashable:
    """All that an array annotation can ask of a value; symbolic sizes, as in an export, are asked about every time."""
    if isinstance(value, (Tensor, np.ndarray)):
        try:
            hash(value.shape)
        except TypeError:  # of sizes that are symbols
            return object()
        return type(value), value.dtype, value.shape
    if isinstance(value, (list, tuple)):
        return type(value), *map(look, value)
    if isinstance(value, Mapping):
        return type(value), *((key, look(item)) for key, item in value.items())
    return value if isinstance(value, str) else type(value)
