"""Run by test_frameworks_processes.py in 1 and 2 processes: fragments of uneven widths, and a neck after the gather."""

import sys
import warnings
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState
from retrieval import frameworks, toy
from torch import nn

from gssf_plug.features import BNNeck
from gssf_plug.losses import BatchHardTriplet, Hinge, IdentityLoss
from gssf_plug.retrieval import NeckLoss, OneTower, PairCollator, RetrievalTrainer, alignment_measures
from gssf_plug.retrieval.training.objective import Objective


def scan():
    torch.manual_seed(0)
    return toy.perturbed(frameworks.scan(True, frameworks.tokenizer()))


def neck_gradients(accelerator):
    """A hardest triplet before a neck and identities after it; the neck sees all rows in any number of processes."""
    torch.manual_seed(1)
    model = OneTower(nn.Linear(6, 12), frameworks.symmetric(12), neck=BNNeck(12))
    loss = NeckLoss(model.neck, before=BatchHardTriplet(margin=2.0), after=IdentityLoss(12, 5))
    nn.init.normal_(loss.after.classifier.weight)
    objective = accelerator.prepare_model(Objective(toy.perturbed(model).train(), loss))
    rows, labels = torch.randn(17, 6, generator=torch.Generator().manual_seed(2)), torch.arange(17) % 5
    parts = [whole.tensor_split(accelerator.num_processes)[accelerator.process_index] for whole in (rows, labels)]
    value = objective(dict(zip(("inputs", "labels"), parts, strict=True)))
    accelerator.backward(value)
    bare = accelerator.unwrap_model(objective)
    gradients = {name: p.grad.clone() for name, p in bare.named_parameters() if p.grad is not None}
    return {"loss": value.item(), "gradients": gradients, "running_mean": model.neck.running_mean.clone()}


def scan_run(folder):
    """Trained, ranked and resumed; the batches of a process have captions and regions of their own greatest length."""
    model = scan()
    tokenizer = model.processors["tokenizer"]
    trainer = RetrievalTrainer(
        model=model,
        loss=Hinge(),
        config=toy.recipe(folder, epochs=2, batch_size=7, accumulation=1, learning_rate=3e-3, eval_batch_size=5),
        train_data=frameworks.pairs(28, "features"),
        collate=PairCollator(tokenizer),
        eval_data=frameworks.pairs(13, "features"),
        evaluation=alignment_measures(model),
    )
    before = trainer.evaluate()
    trainer.train()
    return {"before": before, "after": trainer.evaluate(), "weights": model.state_dict()}


def main(folder: Path, processes: int) -> None:
    handler = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(cpu=True, kwargs_handlers=[handler])
    assert accelerator.num_processes == processes, accelerator.num_processes
    found = {"processes": processes, "neck": neck_gradients(accelerator), "scan": scan_run(folder / "run")}
    torch.save(found, folder / f"rank{accelerator.process_index}.pt")


if __name__ == "__main__":
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", message="No device id is provided via `init_process_group` or `barrier")
    main(Path(sys.argv[1]), int(sys.argv[2]))
    PartialState().destroy_process_group()
