"""The guard can fail: the hook is on, and finds a wrong shape, in arguments and in results."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from jaxtyping import Float, TypeCheckError
from shape_hook import check_shapes, every_call, jaxtyped
from torch import Tensor

from gssf_plug import GSSFMetric


def test_library_functions_are_checked() -> None:
    metric = GSSFMetric(8, block_size=4)
    with pytest.raises(TypeCheckError, match="gallery"):
        metric(torch.randn(3, 8), torch.randn(4, 9))


@pytest.mark.bad_input
def test_bad_input_tests_are_not() -> None:
    metric = GSSFMetric(8, block_size=4)
    with pytest.raises(ValueError, match="must have 8 channels"):
        metric(torch.randn(3, 8), torch.randn(4, 9))


def test_results_are_checked_also_of_calls_that_look_like_an_earlier_one() -> None:
    @jaxtyped(typechecker=check_shapes)
    def cut(x: Float[Tensor, "n m"], columns: int = 0) -> "Float[Tensor, 'n m']":
        return x[:, columns:]

    assert cut(torch.randn(2, 3)).shape == (2, 3)
    with pytest.raises(TypeCheckError, match="return value"):
        cut(torch.randn(2, 3), 1)
    assert cut(torch.randn(2, 3), 0).shape == (2, 3)


ARRAYS: list[tuple[tuple[object, ...], dict[str, object]]] = [
    ((torch.zeros(2, 3), torch.zeros(3)), {}),
    ((torch.zeros(2, 3), torch.zeros(4)), {}),  # another size
    ((torch.zeros(2, 3), torch.zeros(3, dtype=torch.int)), {}),  # another dtype
    ((torch.zeros(2, 3), np.zeros(3, np.float32)), {}),  # another type
    ((torch.zeros(2, 3), None), {}),
    ((torch.zeros(2, 3),), {}),
    ((torch.zeros(2, 3),), {"weight": torch.zeros(4)}),
    ((torch.zeros(2, 3), torch.zeros(3), torch.zeros(3), torch.zeros(4)), {}),
    ((torch.zeros(2, 3), torch.zeros(3)), {"masks": [torch.zeros(2), torch.zeros(2)]}),
    ((torch.zeros(2, 3), torch.zeros(3)), {"masks": [torch.zeros(3), torch.zeros(3)]}),
    ((torch.zeros(2, 3), torch.zeros(3)), {"more": torch.zeros(2)}),
    ((torch.zeros(2, 3), torch.zeros(3)), {"more": torch.zeros(5)}),
    ((), {}),
    ((torch.zeros(2, 3), torch.zeros(3)), {"name": 3}),  # no array: not asked
]


def test_every_call_is_judged_as_by_jaxtyping_whatever_came_before() -> None:
    def weigh(
        x: Float[Tensor, "n m"],
        weight: Float[Tensor, " m"] | None = None,
        *others: Float[Tensor, " m"],
        masks: Sequence[Float[Tensor, " n"]] = (),
        name: str = "",
        **more: Float[Tensor, " n"],
    ) -> None:
        pass

    ours, theirs = (make(weigh, typechecker=check_shapes) for make in (jaxtyped, every_call))
    for args, kwargs in ARRAYS * 3:
        assert _verdict(ours, *args, **kwargs) == _verdict(theirs, *args, **kwargs)
    verdicts = [_verdict(ours, *args, **kwargs) for args, kwargs in ARRAYS]
    assert {TypeCheckError, TypeError, None} == set(verdicts)


def _verdict(function: Callable[..., object], *args: object, **kwargs: object) -> type[BaseException] | None:
    try:
        function(*args, **kwargs)
    except Exception as error:
        return type(error)
    return None


def test_sizes_that_read_an_argument_are_asked_about_at_every_call() -> None:
    @jaxtyped(typechecker=check_shapes)
    def first(x: Float[Tensor, "n {count}"], count: int) -> None:
        pass

    first(torch.zeros(2, 3), 3)
    with pytest.raises(TypeCheckError):
        first(torch.zeros(2, 3), 4)


def test_methods_properties_and_dataclasses_are_checked() -> None:
    @jaxtyped(typechecker=check_shapes)
    @dataclass
    class Pair:
        x: Float[Tensor, " n"]
        y: Float[Tensor, " n"]

        @property
        @jaxtyped(typechecker=check_shapes)
        def both(self) -> Float[Tensor, "2 n"]:
            return torch.stack([self.x, self.y, self.y][: 2 + bool(self.x.sum())])

    wrapped = jaxtyped(classmethod(lambda cls, x: x), typechecker=check_shapes)
    assert isinstance(wrapped, classmethod)
    assert Pair(torch.zeros(3), torch.zeros(3)).both.shape == (2, 3)
    with pytest.raises(TypeCheckError):
        Pair(torch.zeros(3), torch.zeros(4))
    with pytest.raises(TypeCheckError, match="return value"):
        _ = Pair(torch.ones(3), torch.zeros(3)).both


def test_the_hook_of_the_suite_is_this_one_and_leaves_functions_without_arrays_alone() -> None:
    assert hasattr(GSSFMetric.fold, "__wrapped__")
    assert not hasattr(GSSFMetric.extra_repr, "__wrapped__")
