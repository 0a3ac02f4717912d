"""Run by test_processes.py, alone or under `accelerate launch`: trains, resumes, and writes what it got."""

import json
import shutil
import sys
import warnings
from pathlib import Path

import torch
from accelerate import PartialState
from retrieval import toy

from gssf_plug.losses import Hinge


def trainer(folder: Path):
    """No dropout and no augmentation: those differ between processes by design."""
    return toy.trainer(
        folder,
        changes={"eval_batch_size": 7, "epochs": 4},
        model=toy.model(dropout=0.0),
        loss=Hinge(warmup_steps=7, learned_scale=True),
        collate=toy.collate,
    )


def main(folder: Path, processes: int) -> None:
    made = trainer(folder / "first")
    assert made.accelerator.num_processes == processes, made.accelerator.num_processes
    main_process = made.accelerator.is_main_process
    batch = next(made._groups_of_epoch())[0].batch
    rows = len(batch["images"])
    loss = made.objective(batch)
    made.accelerator.backward(loss)
    gradients = {name.removeprefix("module."): p.grad.clone() for name, p in made.objective.named_parameters()}
    made.optimizer.zero_grad()
    measures = made.evaluate()
    embedding = made.embed(made.eval_data)

    made = trainer(folder / "whole")
    progress = made.train()
    if main_process:
        shutil.rmtree(folder / "whole" / "checkpoints" / "step-00000012")  # resumes from the one before
    made.accelerator.wait_for_everyone()
    resumed = trainer(folder / "whole")
    resumed.train(resume=True)
    same = all(
        torch.equal(one, two)
        for one, two in zip(made.model.state_dict().values(), resumed.model.state_dict().values(), strict=True)
    )
    if main_process:
        torch.save(
            {"gradients": gradients, "weights": made.model.state_dict(), "embedding": embedding}, folder / "got.pt"
        )
        report = {"processes": processes, "rows": rows, "loss": loss.item(), "same": same, "step": progress.step}
        print(json.dumps({**report, "measures": measures, "best": progress.best_score}))


if __name__ == "__main__":
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", message="No device id is provided via `init_process_group` or `barrier")
    main(Path(sys.argv[1]), int(sys.argv[2]))
    PartialState().destroy_process_group()
