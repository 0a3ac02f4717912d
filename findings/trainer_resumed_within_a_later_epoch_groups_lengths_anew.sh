#!/usr/bin/env bash
# Found: transformers' Trainer with train_sampling_strategy="group_by_length", resumed within the second epoch or a later one, draws that
# epoch's order anew: the rows that it skips are not the rows that it had trained on. Stopped in the middle of an epoch, about half of
# the rows that come are of those seen before the stop, and as many never come in that epoch. With "random" every batch is the one that an
# unbroken run has, and so is it here in the first epoch and from an epoch's end, where one would look. "random" draws an epoch's order
# by a seed and the epoch's number, the grouping from torch's global generator, whose state at the epoch's start no checkpoint holds: what
# is saved is its state at the stop. The documentation of `ignore_data_skip` promises, where it is False, "exact continuation".
# Why it matters: jobs that are stopped and resumed often, as on preemptible machines, train on a skewed part of their data, the
# resumed run cannot be compared with the unbroken one, and nothing is said: step, epoch and number of batches are right.
# Seen with transformers 5.24.0, accelerate 1.15.0, torch 2.13.0.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch==2.13.*" "transformers==5.24.0" "accelerate==1.15.0" "numpy<3" 2>/dev/null
cd "$folder"
venv/bin/python - 2> said <<'PY' || { tail -20 said; exit 1; }
import random
import tempfile

import torch
import transformers
from torch import nn
from transformers import PrinterCallback, Trainer, TrainingArguments

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
draw = random.Random(0)
ROWS = [{"number": number, "input_ids": [1] * draw.randint(4, 64)} for number in range(256)]
EPOCH = 256 // 8  # steps


class Recorder(nn.Module):
    """A model of one weight that notes which rows it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.batches = nn.Parameter(torch.zeros(1)), []

    def forward(self, number: torch.Tensor) -> dict[str, torch.Tensor]:
        self.batches.append(number.tolist())
        return {"loss": (self.weight - number).square().mean()}


def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
    """Keeps the numbers of the rows."""
    return {"number": torch.tensor([row["number"] for row in rows])}


def batches(folder: str, strategy: str, seed: int, resume: str | None = None) -> list[list[int]]:
    """Batches of a run of two epochs, from its start or from a checkpoint."""
    model = Recorder()
    options = dict(num_train_epochs=2, per_device_train_batch_size=8, save_steps=EPOCH // 2, seed=seed, learning_rate=1e-3)
    options |= dict(remove_unused_columns=False, report_to="none", use_cpu=True, disable_tqdm=True, logging_strategy="no")
    args = TrainingArguments(folder, train_sampling_strategy=strategy, **options)
    trainer = Trainer(model, args, train_dataset=ROWS, data_collator=collate)
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=resume)
    return model.batches


print("transformers", transformers.__version__)
for strategy in ("random", "group_by_length"):
    for seed in (0, 1, 2):
        with tempfile.TemporaryDirectory() as folder:
            whole, found = batches(folder, strategy, seed), {}
            for step in (EPOCH // 2, EPOCH, EPOCH + EPOCH // 2):
                rest = batches(folder, strategy, seed, resume=f"{folder}/checkpoint-{step}")
                assert len(rest) == 2 * EPOCH - step
                found[step] = sum(map(list.__eq__, rest, whole[step:])) / len(rest)
        before, after = ({n for batch in part for n in batch} for part in (whole[EPOCH:step], rest))
        print(f"{strategy}, seed {seed}: batches as in the unbroken run, by the step of the stop: {found};", end=" ")
        print(f"after step {step}, rows seen before the stop {len(before & after)} of {len(after)}, never seen {256 - len(before | after)}")
        same = {EPOCH // 2: 1, EPOCH: 1, EPOCH + EPOCH // 2: strategy == "random"}
        assert found == same, "behaviour has changed"
        assert strategy == "random" or len(before & after) > 30, "behaviour has changed"
PY
