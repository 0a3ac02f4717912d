#!/usr/bin/env bash
# Found: transformers' Trainer, resumed from the last checkpoint of a run that has taken all of its `max_steps`, takes one more.
# The loop asks whether the steps are used up only after a step; where `max_steps` ends within an epoch, the rest of that epoch
# is entered once again: the weights move, and a checkpoint numbered beyond `max_steps` is written. At an epoch's end nothing
# happens, as one expects. Why it matters: jobs that are started again until they succeed (preempted, or killed between the last
# checkpoint and their own end) come out with other weights than an unbroken run, and each restart adds another step.
# Seen with transformers 5.24.0, accelerate 1.15.0, torch 2.13.0.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch==2.13.*" "transformers==5.24.0" "accelerate==1.15.0" "numpy<3" 2>/dev/null
cd "$folder" && venv/bin/python - <<'PY'
import os

import torch, transformers
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

transformers.logging.set_verbosity_error()
config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=20)
rows = [{"input_ids": [n % 20, 3, 5], "labels": n % 2} for n in range(20)]  # 5 batches of 4 in an epoch

def run(folder, max_steps, resume=None):
    torch.manual_seed(0)
    options = dict(max_steps=max_steps, save_steps=1, per_device_train_batch_size=4)
    options |= dict(report_to="none", use_cpu=True, disable_tqdm=True)
    trainer = Trainer(BertForSequenceClassification(config), TrainingArguments(folder, **options), train_dataset=rows)
    trainer.train(resume_from_checkpoint=resume)
    return trainer.state.global_step

def restarted(folder, max_steps):
    steps = [run(folder, max_steps)]
    for _ in range(2):
        steps.append(run(folder, max_steps, resume=True))
    return steps, max(int(name.split("-")[1]) for name in os.listdir(folder))

inside, whole = restarted("inside", 3), restarted("whole", 5)
print(f"transformers {transformers.__version__}: max_steps=3 and two restarts: steps {inside[0]}, last checkpoint {inside[1]}")
print(f"max_steps=5, an epoch's end: steps {whole[0]}, last checkpoint {whole[1]}")
assert inside == ([3, 4, 5], 5) and whole == ([5, 5, 5], 5), "behaviour has changed"
PY
