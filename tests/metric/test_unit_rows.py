"""Rows of every length brought to length one, and to the bit as a plain division where squares stay in range."""

import numpy as np
import pytest
import torch

from gssf_plug import GSSFMetric
from gssf_plug.errors import ArgumentError
from gssf_plug.metric import group_channels, normalize_rows


def plain(x):
    accumulate = torch.promote_types(x.dtype, torch.float32)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=accumulate)
    return (x / norm.clamp_min(1e-12)).to(x.dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e-3, 1.0, 37.0])
def test_to_the_bit_as_a_plain_division(dtype, size):
    x = (size * torch.randn(50, 33)).to(dtype)
    assert torch.equal(normalize_rows(x), plain(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("power", [-95, -80, -30, 30, 80, 120])
def test_no_length_is_lost(dtype, power):
    x = torch.randn(20, 33).to(dtype)
    scaled = x * 2.0**power
    assert torch.equal(normalize_rows(scaled), normalize_rows(x))
    right = torch.nn.functional.normalize(scaled.double(), eps=0)
    torch.testing.assert_close(normalize_rows(scaled).double(), right, atol=4 * torch.finfo(dtype).eps, rtol=0)


def test_the_ends_of_the_range_and_zero():
    rows = torch.tensor([[3e38, 3e38], [3e-45, 3e-45], [0.0, -0.0]], requires_grad=True)
    unit = normalize_rows(rows)
    torch.testing.assert_close(unit, torch.tensor([[0.5**0.5, 0.5**0.5]] * 2 + [[0.0, 0.0]]))
    unit[2].sum().backward()
    assert rows.grad.isfinite().all()


def test_gradients_are_those_of_the_division():
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(normalize_rows, x)
    assert torch.autograd.gradcheck(lambda y: normalize_rows(y * 2.0**500), x)


@pytest.mark.compile
def test_compiled_whole():
    x = torch.cat([torch.randn(3, 8), 1e30 * torch.randn(3, 8), 1e-30 * torch.randn(3, 8)])
    compiled = torch.compile(normalize_rows, fullgraph=True, backend="aot_eager", dynamic=True)
    assert torch.equal(compiled(x), normalize_rows(x))


def test_numpy_arrays_give_numpy_arrays():
    metric, x, y = GSSFMetric(8, block_size=4), np.random.default_rng(0).standard_normal((3, 8)), np.ones((5, 8))
    tensors = torch.from_numpy(x), torch.from_numpy(y)
    for found, right in (
        (metric(x, y), metric(*tensors)),
        (metric.fold(x), metric.fold(tensors[0])),
        (metric.gallery(y), metric.gallery(tensors[1])),
        (metric.pairwise(x, x), metric.aligned(tensors[0], tensors[0])),
        (group_channels(x, x, 4), group_channels(tensors[0], tensors[0], 4)),
    ):
        assert isinstance(found, np.ndarray)
        assert (found == right.detach().numpy()).all()


@pytest.mark.bad_input
def test_lists_and_whole_numbers_are_taken_and_the_rest_is_named():
    metric = GSSFMetric(np.int64(8), terms="diagonal", normalize=np.True_)
    assert metric.terms == ("diagonal",)
    right = metric.fold(torch.ones(1, 8))
    assert torch.equal(metric.fold([[1] * 8]), right)
    assert torch.equal(metric.fold(torch.ones(1, 8, dtype=torch.long)), right)
    with pytest.raises(ArgumentError, match="`normalize` must be True or False, but got 'yes'"):
        GSSFMetric(8, normalize="yes")
    with pytest.raises(ArgumentError, match="`grouping` must hold whole numbers"):
        GSSFMetric(8, block_size=4, grouping=torch.arange(8) + 0.7)
    with pytest.raises(ArgumentError, match="`x` must hold real numbers"):
        group_channels(torch.ones(4, 8, dtype=torch.complex64), torch.ones(4, 8), 4)
    with pytest.raises(ArgumentError, match="`queries` must be a tensor, a numpy array"):
        metric.fold("features")


@pytest.mark.bad_input
@pytest.mark.filterwarnings("ignore::UserWarning")  # sparse and quantized tensors are said to be young, or old
def test_only_dense_real_numbers_have_unit_rows() -> None:
    rows = torch.ones(3, 4)
    strange = (
        rows.to_sparse(),
        rows.to_sparse_csr(),
        torch.nested.nested_tensor([rows, rows[:2]], layout=torch.jagged),
        rows.to(torch.float8_e4m3fn),
    )
    for wrong in strange:
        with pytest.raises(ArgumentError, match="`x` must hold real numbers, densely stored, but got"):
            normalize_rows(wrong)
    for wrong in (rows.to(torch.complex64), torch.quantize_per_tensor(rows, 0.1, 0, torch.quint8), [1.0]):
        with pytest.raises(ArgumentError, match="`x` must be a floating-point tensor"):
            normalize_rows(wrong)
