"""Run by test_equality.py in 1, 2 and 4 processes: loss and gradient of every loss that looks across the batch.

The parts of a batch are what RetrievalTrainer would read: contiguous, the first ones a row longer.
"""

import sys
import warnings
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState
from accelerate.utils import set_seed
from pytorch_metric_learning import losses, miners
from retrieval.toy import perturbed_one_tower, perturbed_two_towers
from torch import nn

from gssf_plug.losses import (
    BatchHardTriplet,
    Hinge,
    IdentityLoss,
    InfoNCE,
    SemiHardTriplet,
    Sigmoid,
    WeightedSum,
    chunked,
)
from gssf_plug.losses.pml import GSSFDistance, MetricLearningLoss
from gssf_plug.retrieval import OneTower
from gssf_plug.retrieval.training.gradcache import cached_backward
from gssf_plug.retrieval.training.objective import Objective

ROWS = (64, 61, 4)  # even in 1, 2 and 4 processes; uneven parts; one row each of four
IDENTITIES = 12


def two_towers(loss):
    return lambda: (perturbed_two_towers(), loss())


def one_tower(loss):
    return lambda: (perturbed_one_tower(), loss())


def with_pml(make):
    def parts():
        model = perturbed_one_tower()
        return model, make(GSSFDistance(model.metric))

    return parts


CASES = {
    "InfoNCE": two_towers(InfoNCE),
    "hinge": two_towers(lambda: Hinge(margin=0.5, learned_scale=True)),
    "sum of hinges": two_towers(lambda: Hinge(margin=0.5, warmup_steps=100)),
    "sigmoid": two_towers(lambda: Sigmoid(learned=True)),
    "InfoNCE, one tower": one_tower(InfoNCE),
    "batch hard": one_tower(lambda: BatchHardTriplet(margin=1.0, learned_scale=True)),
    "soft margin": one_tower(lambda: BatchHardTriplet(margin=None)),
    "semi-hard": one_tower(lambda: SemiHardTriplet(margin=1.0)),
    "identity": one_tower(lambda: seeded_identity()),
    "identity and batch hard": one_tower(lambda: WeightedSum(seeded_identity(), BatchHardTriplet(margin=1.0))),
    "PML contrastive": with_pml(lambda d: MetricLearningLoss(losses.ContrastiveLoss(1.5, -0.5, distance=d))),
    "PML multi-similarity": with_pml(
        lambda d: MetricLearningLoss(losses.MultiSimilarityLoss(distance=d), miners.MultiSimilarityMiner(distance=d))
    ),
    "PML proxy anchor": with_pml(
        lambda d: MetricLearningLoss(seeded(losses.ProxyAnchorLoss, IDENTITIES, 8, distance=d))
    ),
    "PML triplet, hard": with_pml(
        lambda d: MetricLearningLoss(losses.TripletMarginLoss(1.0, distance=d), miners.BatchHardMiner(distance=d))
    ),
}


def seeded(make, *arguments, **options):
    torch.manual_seed(11)
    return make(*arguments, **options)


def seeded_identity():
    loss = IdentityLoss(8, IDENTITIES)
    nn.init.normal_(loss.classifier.weight, generator=torch.Generator().manual_seed(11))
    return loss


def batch_of(name: str, rows: int, process: int, processes: int) -> dict[str, torch.Tensor]:
    """This process's part."""
    generator = torch.Generator().manual_seed(rows)
    images, texts = torch.randn(rows, 10, generator=generator), torch.randn(rows, 6, generator=generator)
    ids = torch.arange(rows) % (IDENTITIES if rows > 4 else 2)
    whole = {"images": images, "image_ids": ids, "texts": texts, "text_ids": ids}
    if isinstance(CASES[name]()[0], OneTower):
        whole = {"inputs": images, "labels": ids}
    return {key: value.tensor_split(processes)[process] for key, value in whole.items()}


def measured(name: str, rows: int, accelerator: Accelerator, chunk_size: int | None) -> dict[str, object]:
    """Loss and gradients after DDP's mean."""
    objective = accelerator.prepare_model(Objective(*CASES[name]()))
    batch = batch_of(name, rows, accelerator.process_index, accelerator.num_processes)
    if chunk_size is None:
        loss = objective(batch)
        value = loss.item()
        accelerator.backward(loss)
    else:
        value = cached_backward(objective, accelerator, batch, chunk_size)
    bare = accelerator.unwrap_model(objective)
    gradients = {key: p.grad.clone() for key, p in bare.named_parameters() if p.grad is not None}
    return {"loss": value, "gradients": gradients, "rows": len(next(iter(batch.values())))}


def main(folder: Path, processes: int, precision: str) -> None:
    handler = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(cpu=True, mixed_precision=precision, kwargs_handlers=[handler])
    assert accelerator.num_processes == processes, accelerator.num_processes
    set_seed(0)
    found = {}
    for name in CASES:
        for rows in ROWS:
            for chunk_size in (None, 5):
                found[name, rows, chunk_size] = measured(name, rows, accelerator, chunk_size)
    chunked.WHOLE_SCORES, chunked.STRIP_SCORES = 100, 640  # strips of ten rows
    for name in ("InfoNCE", "hinge", "batch hard"):
        found[name, 64, "strips"] = measured(name, 64, accelerator, 5)
    torch.save({"processes": accelerator.num_processes, "found": found}, folder / f"rank{accelerator.process_index}.pt")


if __name__ == "__main__":
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", message="No device id is provided via `init_process_group` or `barrier")
    warnings.filterwarnings("ignore", message=".*find_unused_parameters=True was specified.*")
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
    PartialState().destroy_process_group()
