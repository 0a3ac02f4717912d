"""The metric in ONNX Runtime and under torch.export: fold, gallery side and scores, any number of rows, float32."""

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from gssf_plug import GSSFMetric

DIM = 16
KINDS: dict[str, dict[str, Any]] = {
    "diagonal": {"terms": ("diagonal",)},
    "both": {"block_size": 4},
    "small blocks": {"block_size": 2},  # multiplied in blocks of 16
    "grouped": {"block_size": 4, "grouping": torch.randperm(DIM, generator=torch.Generator().manual_seed(1))},
    "symmetric": {"block_size": 4, "constraint": "symmetric"},
    "psd": {"block_size": 4, "constraint": "psd"},
    "raw": {"block_size": 4, "normalize": False},
    "dense": {"terms": ("dense",)},
    "adjacency": {"adjacency": torch.ones(DIM, DIM).tril().bool()},
}


class Side(nn.Module):
    """One of the metric's functions as a module: what an exporter takes."""

    def __init__(self, metric: GSSFMetric, side: str) -> None:
        super().__init__()
        self.metric = metric
        self.side = side

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = getattr(self.metric, self.side)(features)
        return result


def perturbed(kind: str) -> GSSFMetric:
    metric = GSSFMetric(DIM, **KINDS[kind])
    with torch.no_grad():
        for parameter in metric.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return metric.eval()


def pruned() -> GSSFMetric:
    metric = perturbed("both")
    with torch.no_grad():
        metric.structures["block_diagonal"].weight[1] = 0.0
    assert metric.prune(1e-6).dropped == {"block_diagonal": [1]}
    return metric


METRICS: dict[str, Callable[[], GSSFMetric]] = {kind: (lambda kind=kind: perturbed(kind)) for kind in KINDS}
METRICS["pruned"] = pruned


def onnx_session(module: nn.Module, inputs: tuple[Tensor, ...], path: Path) -> onnxruntime.InferenceSession:
    names = ["queries", "gallery"][: len(inputs)]
    shapes = tuple({0: torch.export.Dim(name, min=1)} for name in names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter and onnxscript use what they themselves deprecate
        torch.onnx.export(
            module, inputs, path, input_names=names, output_names=["result"], dynamic_shapes=shapes, verbose=False
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("kind", ["diagonal", "grouped", "psd", "adjacency", "pruned"])
def test_scores_in_onnx_runtime(kind: str, tmp_path: Path) -> None:
    metric = METRICS[kind]()
    before = copy.deepcopy(metric.state_dict())
    session = onnx_session(metric, (torch.randn(5, DIM), torch.randn(7, DIM)), tmp_path / "scores.onnx")
    assert all(torch.equal(before[name], value) for name, value in metric.state_dict().items())
    for n, m in ((5, 7), (1, 1), (33, 2)):
        x, y = torch.randn(n, DIM), torch.randn(m, DIM)
        (scores,) = session.run(None, {"queries": x.numpy(), "gallery": y.numpy()})
        assert scores.dtype == np.float32
        torch.testing.assert_close(torch.from_numpy(scores), metric(x, y).detach(), rtol=1e-5, atol=1e-5)
        assert not np.allclose(scores, torch.cosine_similarity(x[:, None], y[None], dim=-1), atol=1e-3)


@pytest.mark.parametrize("side", ["fold", "gallery"])
def test_each_side_in_onnx_runtime(side: str, tmp_path: Path) -> None:
    """What a service needs: fold in front of the index, gallery when items are added."""
    metric = perturbed("grouped")
    session = onnx_session(Side(metric, side), (torch.randn(5, DIM),), tmp_path / f"{side}.onnx")
    for rows in (1, 5, 64):
        x = torch.randn(rows, DIM)
        (vectors,) = session.run(None, {"queries": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(vectors), getattr(metric, side)(x).detach(), rtol=1e-5, atol=1e-5)
    zero = session.run(None, {"queries": np.zeros((1, DIM), np.float32)})[0]
    assert not zero.any(), "a zero row stays zero"


@pytest.mark.parametrize("kind", METRICS)
def test_under_torch_export(kind: str, tmp_path: Path) -> None:
    metric = METRICS[kind]()
    rows, columns = torch.export.Dim("n", min=2, max=4096), torch.export.Dim("m", min=2, max=4096)
    example = torch.randn(5, DIM), torch.randn(7, DIM)
    program = torch.export.export(metric, example, dynamic_shapes=({0: rows}, {0: columns}))
    torch.export.save(program, tmp_path / "metric.pt2")
    loaded = torch.export.load(tmp_path / "metric.pt2").module()
    x, y = torch.randn(9, DIM), torch.randn(3, DIM)
    torch.testing.assert_close(loaded(x, y), metric(x, y))
