"""Run by test_samplers.py, alone or under `accelerate launch`: trains with P×K batches, is cut off, and goes on."""

import json
import os
import sys
import warnings
from pathlib import Path

import torch
from accelerate import PartialState
from retrieval import toy

from gssf_plug.losses import BatchHardTriplet
from gssf_plug.retrieval import RetrievalConfig, RetrievalTrainer
from gssf_plug.retrieval.data.samplers import IdentityBatches

LABELS = torch.arange(8).repeat_interleave(torch.tensor([9, 4, 4, 5, 12, 6, 8, 4]))
EPOCHS, CHECKPOINT_EVERY, CUT_AFTER = 3, 4, 5


class Rows:
    """Features around their identity; every row that is read is noted."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(5)
        centres = torch.randn(8, 10, generator=generator)
        self.inputs = centres[LABELS] + torch.randn(len(LABELS), 10, generator=generator)
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(LABELS)

    def __getitem__(self, row: int) -> dict[str, object]:
        self.read.append(row)
        return {"inputs": self.inputs[row], "labels": int(LABELS[row])}


def train(folder: Path, processes: int, cut_after: int | None = None) -> tuple[RetrievalTrainer, list[list[int]]]:
    """The trainer after its run, and the rows that this process read for each step."""
    rows, steps = Rows(), []

    def collate(read):
        if len(steps) == cut_after:
            raise InterruptedError
        steps.append(rows.read[-len(read) :])
        return toy.collate_labelled(read)

    config = RetrievalConfig(
        output_dir=folder,
        epochs=EPOCHS,
        batch_size=12,
        learning_rate=1e-2,
        checkpoint_every=CHECKPOINT_EVERY,
        progress=False,
    )
    trainer = RetrievalTrainer(
        model=toy.one_tower(),
        loss=BatchHardTriplet(margin=2.0),
        config=config,
        train_data=rows,
        collate=collate,
        batches=IdentityBatches(LABELS, identities=4, images=3, seed=1, processes=processes),
    )
    assert trainer.accelerator.num_processes == processes, trainer.accelerator.num_processes
    try:
        trainer.train(resume=True)
    except InterruptedError:
        assert cut_after is not None
    return trainer, steps


def main(folder: Path, processes: int, task: str) -> None:
    """All of it, or "cut" and "resume" as two launches, which may differ in the number of processes."""
    report = {"processes": processes}
    if task == "cut":
        train(folder / "moved", processes, CUT_AFTER)
    elif task == "resume":
        whole, report["after"] = train(folder / "moved", processes)
    else:
        whole, report["steps"] = train(folder / "whole", processes)
        _, report["before"] = train(folder / "parts", processes, CUT_AFTER)
        resumed, report["after"] = train(folder / "parts", processes)
        report["same"] = all(
            torch.equal(one, two)
            for one, two in zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True)
        )
    rank = int(os.environ.get("RANK", "0"))
    (folder / f"rank{rank}.json").write_text(json.dumps(report))
    if rank == 0 and task != "cut":
        torch.save(whole.model.state_dict(), folder / "weights.pt")


if __name__ == "__main__":
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", message="No device id is provided via `init_process_group` or `barrier")
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
    PartialState().destroy_process_group()
