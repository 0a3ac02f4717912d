"""Run by test_equality.py in 1, 2 and 4 processes: loss and gradients of every loss that looks across the batch.

In 1 and 2 processes also a run of DistillationTrainer, eight rows a batch however many processes there are.
"""

import sys
import warnings
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from datasets import Dataset
from distillation.models import bert, text
from torch import nn
from transformers import TrainingArguments

from gssf_plug import GSSFMetric
from gssf_plug.distillation import DistillationTrainer, Distiller
from gssf_plug.distillation.losses import CKA, CRD, PKT, RKD, SP, Contrastive, Regression, Relation
from gssf_plug.distributed import process_count

ROWS = (64, 61, 4)  # even in 1, 2 and 4 processes; uneven parts; one row each of four
STUDENT, TEACHER = 16, 24
RELATIONAL = {
    "relation": lambda: Relation(GSSFMetric(STUDENT, block_size=4, constraint="psd")),
    "relation, softened": lambda: Relation(GSSFMetric(STUDENT, block_size=8, constraint="psd"), temperature=0.1),
    "relation, projected": lambda: Relation(GSSFMetric(TEACHER, block_size=8, constraint="psd"), projected=True),
    "contrastive": lambda: Contrastive(GSSFMetric(TEACHER, block_size=8)),
    "SP": SP,
    "SP, metric": lambda: SP(GSSFMetric(STUDENT)),
    "PKT": PKT,
    "PKT, metric": lambda: PKT(GSSFMetric(STUDENT)),
    "RKD": RKD,
    "RKD, metric": lambda: RKD(GSSFMetric(STUDENT, constraint="psd")),
    "CRD": CRD,
    "CRD, metric": lambda: CRD(GSSFMetric(TEACHER, block_size=8)),
    "CKA": CKA,
}
PER_EXAMPLE = {  # means over a process's own rows: equal where the parts are, since DDP weighs processes alike
    "mse": lambda: "mse",
    "vid": lambda: "vid",
    "regression": lambda: Regression(GSSFMetric(TEACHER, block_size=8, constraint="psd", normalize=False)),
}
CASES = {**RELATIONAL, **PER_EXAMPLE}


def distiller(name: str) -> Distiller:
    """Two small towers; every trainable part moved away from its start."""
    torch.manual_seed(5)
    student = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, STUDENT))
    teacher = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, TEACHER))
    made = Distiller(student, teacher, {"2": "2"}, CASES[name]())
    made.plan(torch.randn(4, 6))
    with torch.no_grad():
        for parameter in made.losses.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return made.train()


def measured(name: str, rows: int, accelerator: Accelerator) -> dict[str, object]:
    """Loss and gradients after DDP's mean; the first parts are a row longer."""
    wrapped = accelerator.prepare_model(distiller(name))
    whole = torch.randn(rows, 6, generator=torch.Generator().manual_seed(rows))
    own = whole.tensor_split(accelerator.num_processes)[accelerator.process_index]
    loss = wrapped(own)["loss"]
    accelerator.backward(loss)
    bare = accelerator.unwrap_model(wrapped)
    gradients = {key: p.grad.clone() for key, p in bare.named_parameters() if p.grad is not None}
    mean = accelerator.reduce(loss.detach(), "mean").item()  # of equals, where the loss saw all rows
    return {"loss": loss.item() if name in RELATIONAL else mean, "gradients": gradients, "rows": len(own)}


def trainer(folder: Path, processes: int, **options: object) -> DistillationTrainer:
    """Eight rows a batch; three batches an epoch, two epochs, a checkpoint in the middle of each."""
    student = bert(seed=1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    made = Distiller(student, bert(24, 4, seed=2), {"encoder.layer.1": "encoder.layer.3"}, ["gssf", "crd"])
    args = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 8 // processes,
        "max_steps": 6,
        "save_steps": 2,
        "learning_rate": 0.1,
        "optim": "sgd",
        "optim_args": "momentum=0.9",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    data = Dataset.from_dict({name: value.tolist() for name, value in text(24).items()})
    torch.manual_seed(7)
    made.plan(text(4))
    args = TrainingArguments(**{**args, **options})
    return DistillationTrainer(model=student, args=args, train_dataset=data, distiller=made)


def run(folder: Path, processes: int, checkpoint: Path | None = None) -> dict[str, torch.Tensor]:
    """The weights after a run, or after one that goes on from a checkpoint."""
    made = trainer(folder, processes)
    assert made.args.world_size == processes
    made.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    return {name: value.detach().clone() for name, value in made.distiller.state_dict().items()}


def main(folder: Path, processes: int, checkpoint: Path | None = None) -> None:
    accelerator = Accelerator(cpu=True, kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)])
    assert accelerator.num_processes == process_count() == processes, (accelerator.num_processes, processes)
    found = {
        (name, rows): measured(name, rows, accelerator)
        for name in CASES
        for rows in ROWS
        if name in RELATIONAL or rows % 4 == 0
    }
    runs = {}
    if processes < 4:
        runs["whole"] = run(folder / "run", processes)
    if checkpoint is not None:
        runs["resumed"] = run(folder / "resumed", processes, checkpoint)
    rank = accelerator.process_index
    torch.save({"processes": processes, "found": found, "runs": runs}, folder / f"rank{rank}.pt")
    accelerator.end_training()


if __name__ == "__main__":
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", message="No device id is provided via `init_process_group` or `barrier")
    warnings.filterwarnings("ignore", message=".*find_unused_parameters=True was specified.*")
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]), *map(Path, sys.argv[3:]))
