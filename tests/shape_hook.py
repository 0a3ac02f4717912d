"""The checker of pytest's jaxtyping hook: array annotations only.

beartype alone would also check `Sequence[str]`, `Path`, … (mypy does that, and our own errors are what a user should
see) and refuses `typing.Self` in functions that it decorates one by one.
"""

from collections.abc import Callable
from typing import Any, get_args

from beartype import beartype
from jaxtyping import AbstractArray


def check_shapes(function: Callable[..., Any]) -> Callable[..., Any]:
    annotations = function.__annotations__
    function.__annotations__ = {name: hint for name, hint in annotations.items() if holds_array(hint)}
    return beartype(function)


def holds_array(hint: object) -> bool:
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(holds_array(part) for part in get_args(hint))
