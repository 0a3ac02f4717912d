"""Every loss on the device against the contract's float64 loops on the CPU."""

from types import ModuleType

import torch
from contracts.loss import LossContract
from losses import test_hinge, test_infonce, test_sigmoid, test_triplet

from device.record import Record

TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 5e-3}


def run(record: Record, device: torch.device, quick: bool) -> None:
    for module in (test_infonce, test_hinge, test_sigmoid, test_triplet):
        for kind in contracts(module):
            for dtype, tolerance in TOLERANCES.items():
                loss = f"{module.__name__.removeprefix('losses.test_')} {kind.__name__.removeprefix('Test')}"
                name = f"{loss}, {str(dtype).removeprefix('torch.')}"
                with record.step(name):
                    record.at_most(name, _error(kind(), device, dtype), tolerance)


def contracts(module: ModuleType) -> list[type[LossContract]]:
    """The contract's classes in a module of tests."""
    kinds = [kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, LossContract)]
    return [kind for kind in kinds if kind is not LossContract]


def _error(contract: LossContract, device: torch.device, dtype: torch.dtype) -> float:
    """Relative difference of the value; scores are rounded to the dtype before both."""
    scores, relevance, mask = contract.batch()
    scores = scores.to(dtype)
    expected = contract.reference(scores.double().tolist(), relevance.tolist(), mask.tolist())
    loss = contract.make().to(device).eval()
    given = scores.to(device).requires_grad_()
    found = loss(given, relevance.to(device), forbidden=mask.to(device))
    found.backward()
    assert given.grad.isfinite().all()
    return abs(found.item() - expected) / max(abs(expected), 1.0)
