"""Two real processes: the gradient, the evaluation and the run of one process with the whole batch."""

import json

import pytest
import torch
from workers.launching import launch


def run(folder, processes):
    printed = launch("workers.retrieval_process", folder, processes)
    report = next(json.loads(line) for line in printed.splitlines() if line.startswith("{"))
    return report, torch.load(folder / "got.pt", weights_only=False)


def test_two_processes_are_one(tmp_path):
    one, alone = run(tmp_path / "one", 1)
    two, together = run(tmp_path / "two", 2)
    assert (one["processes"], two["processes"]) == (1, 2)
    assert (one["rows"], two["rows"]) == (9, 5)  # a batch of nine, its parts uneven
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-6)
    assert alone["gradients"].keys() == together["gradients"].keys()
    for name, gradient in alone["gradients"].items():
        assert gradient.abs().max() > 1e-7, name
        torch.testing.assert_close(together["gradients"][name], gradient, atol=1e-6, rtol=1e-5, msg=name)
    for one_side, other_side in zip(alone["embedding"], together["embedding"], strict=True):
        torch.testing.assert_close(other_side, one_side)
    assert two["measures"] == pytest.approx(one["measures"])
    assert one["same"]
    assert two["same"], "a resumed run of two processes differs from the unbroken one"
    assert one["step"] == two["step"] == 12
    for name, weight in alone["weights"].items():
        torch.testing.assert_close(together["weights"][name], weight, atol=2e-3, rtol=1e-2, msg=name)
