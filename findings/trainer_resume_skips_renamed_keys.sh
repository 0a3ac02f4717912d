#!/usr/bin/env bash
# Found: transformers' Trainer, resuming a ViT from its own checkpoint, gets most of the weights back as they were before loading.
# It writes a checkpoint with save_pretrained, which gives the keys of some hundred model types other names, and reads the
# file back with a non-strict load_state_dict that passes over names it does not know. A log line lists keys; nothing fails.
# from_pretrained on the same folder restores all of them. Why it matters: a resumed run goes on from random weights beside
# the old optimizer state, and load_best_model_at_end mixes two steps. Seen with transformers 5.24.0, torch 2.13.0.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch==2.13.*" "transformers==5.24.0" "accelerate==1.15.0" "numpy<3" 2>/dev/null
cd "$folder" && venv/bin/python - <<'PY'
import torch, transformers
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

transformers.logging.set_verbosity_error()
config = ViTConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=8, patch_size=4)
rows = [{"pixel_values": torch.randn(3, 8, 8), "labels": n % 2} for n in range(8)]

def run(seed, resume=None):
    torch.manual_seed(seed)
    model = ViTForImageClassification(config)
    options = dict(output_dir="run", max_steps=2, save_steps=1, report_to="none", use_cpu=True, disable_tqdm=True, learning_rate=0.0)
    Trainer(model, TrainingArguments(**options), train_dataset=rows).train(resume_from_checkpoint=resume)
    return model.state_dict()

first = run(0)                                   # the rate is 0: weights stay what they were
resumed = run(1, resume="run/checkpoint-1")      # another start; resuming should bring the first one's weights
loaded = ViTForImageClassification.from_pretrained("run/checkpoint-1").state_dict()
# biases of 0 and norms of 1 are alike in any two starts: count what differs between them
drawn = [k for k, v in first.items() if v.unique().numel() > 1]
back = sum(torch.equal(first[k], resumed[k]) for k in drawn)
whole = sum(torch.equal(first[k], loaded[k]) for k in drawn)
print(f"transformers {transformers.__version__}: of {len(drawn)} drawn tensors Trainer restored {back}, from_pretrained {whole}")
assert whole == len(drawn) and back < len(drawn), "behaviour has changed"
PY
