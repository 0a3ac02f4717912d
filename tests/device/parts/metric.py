"""The metric on the device against the contract's float64 loops on the CPU: every structure, dtype, TF32 or not."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from contracts.metric import DIM, MetricContract
from metric import test_structures

from device.record import Record, compared, peak_mebibytes, timed
from gssf_plug import GSSFMetric

TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 0.05, torch.float16: 5e-3}
TF32_TOLERANCE = 5e-3  # ten bits of mantissa, products of unit vectors under weights of about one


def run(record: Record, device: torch.device, quick: bool) -> None:
    structures = [kind for kind in vars(test_structures).values() if _is_contract(kind)]
    for kind in structures:
        for dtype, tolerance in TOLERANCES.items():
            for tf32 in (False, True) if dtype == torch.float32 and device.type == "cuda" else (False,):
                limit = max(tolerance, TF32_TOLERANCE) if tf32 else tolerance
                name = f"{kind.__name__}, {str(dtype).removeprefix('torch.')}{', TF32' if tf32 else ''}"
                with record.step(name), tensor_cores(tf32):
                    record.at_most(f"{name}: scores", _error(kind(), device, dtype), limit)
        with record.step(f"{kind.__name__}: gradient"), tensor_cores(False):
            record.at_most(f"{kind.__name__}: gradient against float64", _gradient_error(kind(), device), 1e-4)
    with record.step("cost of a fold"):
        _cost(record, device, quick)


def _is_contract(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, MetricContract) and kind is not MetricContract


@contextmanager
def tensor_cores(tf32: bool) -> Iterator[None]:
    """float32 products with or without TF32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _error(contract: MetricContract, device: torch.device, dtype: torch.dtype) -> float:
    metric = contract.make()
    x, y = torch.randn(5, DIM).to(dtype), torch.randn(7, DIM).to(dtype)
    expected = contract.reference_scores(metric, x, y)
    found = copy.deepcopy(metric).to(device)(x.to(device), y.to(device))
    assert found.dtype == dtype
    return (found.cpu().double() - expected).abs().max().item()


def _gradient_error(contract: MetricContract, device: torch.device) -> float:
    metric = contract.make()
    x, y = torch.randn(5, DIM), torch.randn(7, DIM)
    slow, fast = copy.deepcopy(metric).double(), copy.deepcopy(metric).to(device)
    slow(x.double(), y.double()).square().sum().backward()
    fast(x.to(device), y.to(device)).square().sum().backward()
    pairs = zip(slow.parameters(), fast.parameters(), strict=True)
    return max((a.grad - b.grad.cpu().double()).abs().max().item() / a.grad.abs().max().item() for a, b in pairs)


def _cost(record: Record, device: torch.device, quick: bool) -> None:
    """All pairs under the metric beside the plain normalised product: one fold more."""
    rows, items, dim = (64, 256, 64) if quick else (5_000, 25_000, 1024)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    metric = GSSFMetric(dim, block_size=16).to(device)
    x, y = (torch.randn(count, dim, device=device, dtype=dtype) for count in (rows, items))
    unit = torch.nn.functional.normalize
    with torch.inference_mode():
        candidates = {"metric": lambda: metric(x, y), "cosine": lambda: unit(x, dim=-1) @ unit(y, dim=-1).T}
        value, shown = compared(timed(candidates, device, 3 if quick else 30), "metric", "cosine")
        record.add(f"all pairs {rows:,} × {items:,} × {dim}, metric ÷ cosine", "measured", shown)
        record.measured("peak memory of it", peak_mebibytes(candidates["metric"], device))
