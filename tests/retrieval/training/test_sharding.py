"""FSDP2 by `fully_shard` on two CPU processes: gradients and steps of one process, weights that load plainly."""

import pytest
import torch
from accelerate import Accelerator
from retrieval import toy
from torch import nn
from workers import retrieval_sharded
from workers.launching import launch

from gssf_plug.retrieval import TwoTower
from gssf_plug.retrieval.training.optimizer import take_step
from gssf_plug.retrieval.training.sharding import WholeWeights, copy_on


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


def test_whole_weights_are_those_of_the_model_itself():
    model = toy.perturbed_two_towers().eval()
    whole, batch = WholeWeights(model, Accelerator(cpu=True)), toy.collate(toy.rows(4))
    for one, other in zip(whole.encode(batch), model(batch), strict=True):
        assert torch.equal(one, other)
    assert whole.plain_model() is model
    with whole.gathered():
        filled = []
        whole.replace(filled.append)
    assert filled == [model]


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_an_outline_keeps_ties_flags_buffers_and_processors(device):
    encoder = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8))
    encoder[0].bias.requires_grad_(False)
    model = TwoTower(encoder, encoder)
    encoder[1].running_mean.fill_(3.0)
    model.processors["tokenizer"] = processor = object()
    outline = copy_on(model, device)
    assert {parameter.device.type for parameter in outline.parameters()} == {device}
    assert outline.image_tower.encoder is outline.text_tower.encoder is not encoder
    assert [p.requires_grad for p in outline.parameters()] == [p.requires_grad for p in model.parameters()]
    assert outline.image_tower.encoder[1].running_mean.eq(3).all()
    assert outline.processors["tokenizer"] is processor
    assert encoder[0].weight.device.type == "cpu"  # the model itself is as it was
    if device == "cpu":
        outline.load_state_dict(model.state_dict())
        assert torch.equal(outline.image_tower.encoder[0].weight, encoder[0].weight)
