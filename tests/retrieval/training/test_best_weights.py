"""Best weights come back, and only better ones are noted."""

import torch
from retrieval import toy

from gssf_plug.retrieval.training.progress import Progress


def test_best_weights_come_back(tmp_path):
    (tmp_path / "run").mkdir()
    trainer = toy.trainer(tmp_path / "run")
    best, progress = trainer.best, Progress()
    assert best.improved({"rsum": 1.0}, progress)
    best.write(trainer.model)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(1.0)
    assert not best.improved({"rsum": 1.0}, progress)
    best.write(None)
    best.load(trainer.model)
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
