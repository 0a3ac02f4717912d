"""Run by test_distributed.py in several processes: DDP over a gathered batch against one process with all rows.

`FOLDER 2 4,4 5,3 …`: the rows of each process, batch by batch; the folder is not used.
"""

import sys
import warnings

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gssf_plug import GSSFMetric
from gssf_plug.distributed import gather, gather_detached, process_count


class Step(nn.Module):
    """Encode the own rows, gather, score with a metric, a loss in which every row meets every other."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8))
        self.metric = GSSFMetric(8, block_size=4)
        for parameter in self.metric.parameters():
            nn.init.normal_(parameter)

    def forward(self, rows, ids):
        features, ids = gather(self.encoder(rows)), gather_detached(ids)
        scores = self.metric(features, features)
        return nn.functional.cross_entropy(5 * scores, ids)


def compare(counts: list[int]) -> None:
    rank, processes = dist.get_rank(), process_count()
    assert processes == len(counts) == 2
    torch.manual_seed(0)
    rows, ids = torch.randn(sum(counts), 6), torch.randperm(sum(counts))
    step = Step()
    before = sum(counts[:rank])
    own = slice(before, before + counts[rank])
    gathered = gather(rows[own])
    assert torch.equal(gathered, rows)
    assert torch.equal(gather_detached(ids[own]), ids)
    assert gather_detached(ids[own] > 3).dtype == torch.bool

    parallel = DistributedDataParallel(step)
    parallel(rows[own], ids[own]).backward()
    shared = {name: parameter.grad.clone() for name, parameter in step.named_parameters()}
    step.zero_grad()
    alone = torch.nn.functional.cross_entropy(5 * step.metric(f := step.encoder(rows), f), ids)
    alone.backward()
    for name, parameter in step.named_parameters():
        assert parameter.grad.abs().max() > 1e-6, name
        torch.testing.assert_close(shared[name], parameter.grad, atol=1e-6, rtol=1e-5, msg=name)
    dist.barrier()
    if rank == 0:
        print(f"{processes} processes agree")


if __name__ == "__main__":
    warnings.simplefilter("error")
    dist.init_process_group("gloo")
    for case in sys.argv[3:]:
        compare([int(count) for count in case.split(",")])
    dist.destroy_process_group()
