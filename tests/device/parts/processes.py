"""The backend of this device: gathering with gradients in a group of one process, NCCL on a GPU, gloo on a CPU."""

import os

import torch
import torch.distributed as dist

from device.record import Record
from gssf_plug.distributed import gather


def run(record: Record, device: torch.device, quick: bool) -> None:
    backend = "nccl" if device.type == "cuda" else "gloo"
    if not (dist.is_nccl_available() if backend == "nccl" else dist.is_gloo_available()):
        record.not_run(backend, "this torch is built without it")
        return
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0", RANK="0", WORLD_SIZE="1")
    store = dist.HashStore()
    dist.init_process_group(backend, store=store, rank=0, world_size=1)
    try:
        with record.step(f"gather over {backend}, one process"):
            x = torch.randn(6, 4, device=device, requires_grad=True)
            found = gather(x)
            found.square().sum().backward()
            record.equal(f"gather over {backend}, one process", torch.equal(found, x) and torch.equal(x.grad, 2 * x))
        total = torch.ones(3, device=device)
        dist.all_reduce(total)
        record.equal(f"all_reduce over {backend}", bool((total == 1).all()))
    finally:
        dist.destroy_process_group()
    record.not_run("several GPUs", "this script asks for one; `accelerate launch` with tests/workers/ needs more")
