"""Run by test_sharded.py in two processes: `fully_shard` (FSDP2) of model, metric and loss, on CPU."""

import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from retrieval import toy
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from gssf_plug.losses import Hinge
from gssf_plug.retrieval.training.gradcache import cached_backward
from gssf_plug.retrieval.training.objective import Objective
from gssf_plug.retrieval.training.optimizer import take_step

ROWS = 21


def build(sharded: bool) -> Objective:
    objective = Objective(toy.perturbed_two_towers(), Hinge(margin=0.5, learned_scale=True))
    if sharded:
        fully_shard(objective.model.image_tower)
        fully_shard(objective)
        assert all(isinstance(parameter, DTensor) for parameter in objective.parameters())
    return objective


def part_of(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value.tensor_split(dist.get_world_size())[dist.get_rank()] for key, value in batch.items()}


def gradients(objective: Objective, backward: object) -> dict[str, torch.Tensor]:
    objective.zero_grad()
    backward()
    found = {name: parameter.grad for name, parameter in objective.named_parameters()}
    return {name: grad.full_tensor() if isinstance(grad, DTensor) else grad for name, grad in found.items()}


def main(folder: Path, processes: int) -> None:
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == dist.get_world_size() == processes
    batch = toy.collate(toy.rows(ROWS))
    own = part_of(batch)
    objective = build(sharded=True)
    found = {
        "direct": gradients(objective, lambda: objective(own).backward()),
        "chunks": gradients(objective, lambda: cached_backward(objective, accelerator, own, 4)),
    }
    optimizer = torch.optim.AdamW(objective.parameters(), lr=0.1)
    for chunk_size in (None, 4):
        config = toy.recipe(folder, chunk_size=chunk_size)
        outcome = take_step(objective, optimizer, accelerator, [own], config)
        assert not outcome.failure
    weights = get_model_state_dict(objective.model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if accelerator.is_main_process:
        plain = toy.model(dropout=0.0)
        plain.load_state_dict(weights)  # a plain model again
        torch.save({"processes": processes, "gradients": found, "weights": weights}, folder / "got.pt")


if __name__ == "__main__":
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", message="No device id is provided via `init_process_group` or `barrier")
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]))
    PartialState().destroy_process_group()
