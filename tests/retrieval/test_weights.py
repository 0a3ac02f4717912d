"""Best weights are read on whatever device a process was given."""

import pytest
import torch
from retrieval import toy

from gssf_plug.retrieval.progress import Progress


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])  # Accelerate says cpu:0 where several processes run
def test_best_weights_come_back(device, tmp_path):
    (tmp_path / "run").mkdir()
    trainer = toy.trainer(tmp_path / "run")
    best = trainer.best
    best.keep(trainer.model, {"rsum": 1.0}, Progress())
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(1.0)
    best.load(trainer.model, torch.device(device))
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
