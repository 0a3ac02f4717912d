"""The guard can fail: the hook is on, and finds a wrong shape, in arguments and in results."""

import pytest
import torch
from jaxtyping import Float, TypeCheckError, jaxtyped
from shape_hook import check_shapes
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


def test_results_are_checked() -> None:
    @jaxtyped(typechecker=check_shapes)
    def transpose(x: Float[Tensor, "n m"], name: int = "not an int") -> Float[Tensor, "n m"]:
        return x.T

    with pytest.raises(TypeCheckError, match="return value"):
        transpose(torch.randn(2, 3))
    assert transpose(torch.randn(2, 2)).shape == (2, 2)
