"""Local alignment and a neck in two real processes are what they are in one."""

import pytest
import torch
from workers.launching import launch


def launched(folder, processes):
    launch("workers.retrieval_frameworks", folder, processes)
    ranks = [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(processes)]
    assert [rank["processes"] for rank in ranks] == [processes] * processes
    return ranks


def test_two_processes_are_one(tmp_path):
    (alone,) = launched(tmp_path / "one", 1)
    for found in launched(tmp_path / "two", 2):
        assert found["neck"]["loss"] == pytest.approx(alone["neck"]["loss"], rel=1e-5)
        torch.testing.assert_close(found["neck"]["running_mean"], alone["neck"]["running_mean"])
        assert found["neck"]["gradients"].keys() == alone["neck"]["gradients"].keys()
        for name, gradient in found["neck"]["gradients"].items():
            torch.testing.assert_close(gradient, alone["neck"]["gradients"][name], atol=1e-5, rtol=1e-4, msg=name)
        assert found["scan"]["before"] == pytest.approx(alone["scan"]["before"])
        for name, weight in found["scan"]["weights"].items():
            torch.testing.assert_close(weight, alone["scan"]["weights"][name], atol=2e-3, rtol=1e-2, msg=name)
        assert found["scan"]["after"] != found["scan"]["before"]
