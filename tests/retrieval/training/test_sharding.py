"""FSDP2 by `fully_shard` on two CPU processes: gradients and steps of one process, weights that load plainly."""

import torch
from accelerate import Accelerator
from retrieval import toy
from workers import retrieval_sharded
from workers.launching import launch

from gssf_plug.retrieval.training.optimizer import take_step


def test_sharded_training_is_plain_training(tmp_path):
    launch("workers.retrieval_sharded", tmp_path, 2)
    got = torch.load(tmp_path / "got.pt")
    assert got["processes"] == 2
    batch = toy.collate(toy.rows(retrieval_sharded.ROWS))
    alone = retrieval_sharded.build(sharded=False)
    right = retrieval_sharded.gradients(alone, lambda: alone(batch).backward())
    for kind, found in got["gradients"].items():
        assert found.keys() == right.keys()
        for name, gradient in found.items():
            assert right[name].abs().max() > 1e-6, name
            torch.testing.assert_close(gradient, right[name], atol=1e-6, rtol=1e-5, msg=f"{kind}: {name}")
    optimizer, config = torch.optim.AdamW(alone.parameters(), lr=0.1), toy.recipe(tmp_path)
    for _ in range(2):
        take_step(alone, optimizer, Accelerator(cpu=True), [batch], config)
    for name, weight in alone.model.state_dict().items():
        torch.testing.assert_close(got["weights"][name], weight, atol=1e-4, rtol=1e-3, msg=name)
