#!/usr/bin/env bash
# Found: Accelerator.gather_for_metrics takes rows off the last batch by the length of the *dataset*, not by what the sampler draws.
# With a sampler that draws another number (SubsetRandomSampler for a validation split, WeightedRandomSampler, RandomSampler with
# num_samples) or a batch_sampler that drops its last batch, real rows go: on one process too, where nothing is padded. 30 rows drawn from
# 100 in batches of 8 come back as 28; two processes bring 20; and from 96, where the division leaves nothing, two bring 32, the copies that
# it is there to take off. The same rows by Subset(dataset, indices) come back whole. It is promised as "drops duplicates in the last
# batch if on a distributed system". Why it matters: a metric then leaves out the last rows or counts some twice, without a word,
# and changes with the batch size and the number of processes. Count what came back, or split by Subset.
# Seen with accelerate 1.15.0, torch 2.13.0.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch==2.13.*" "accelerate==1.15.0" "numpy<3" 2>/dev/null
cat > "$folder/count.py" <<'PY'
import accelerate
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, Subset, SubsetRandomSampler
from torch.utils.data import TensorDataset, WeightedRandomSampler

accelerator = accelerate.Accelerator(cpu=True)


def gathered(loader: DataLoader) -> int:
    """Rows that come back from a pass over the loader."""
    return sum(len(accelerator.gather_for_metrics(rows)) for (rows,) in accelerator.prepare(loader))


data, other = TensorDataset(torch.arange(100)), TensorDataset(torch.arange(96))
drop = BatchSampler(SequentialSampler(data), 8, drop_last=True)
found = {
    "subset": gathered(DataLoader(data, 8, sampler=SubsetRandomSampler(range(30)))),
    "weighted": gathered(DataLoader(data, 8, sampler=WeightedRandomSampler(torch.ones(100), 30))),
    "num_samples": gathered(DataLoader(data, 8, sampler=RandomSampler(data, num_samples=30))),
    "of 96": gathered(DataLoader(other, 8, sampler=SubsetRandomSampler(range(30)))),
    "drop_last of 100": gathered(DataLoader(data, batch_sampler=drop)),
    "Subset": gathered(DataLoader(Subset(data, range(30)), 8)),
    "all of 100": gathered(DataLoader(data, 8)),
}
if accelerator.is_main_process:
    print(f"accelerate {accelerate.__version__}, {accelerator.num_processes} process(es): {found}")
few, whole = {1: (28, 30), 2: (20, 32)}[accelerator.num_processes]
assert found["subset"] == found["weighted"] == found["num_samples"] == few, "behaviour has changed"
assert found["of 96"] == whole and found["Subset"] == 30 and found["all of 100"] == 100, "behaviour has changed"
assert accelerator.num_processes > 1 or found["drop_last of 100"] == 92, "behaviour has changed"
PY
export OMP_NUM_THREADS=1
"$folder/venv/bin/python" "$folder/count.py" 2> "$folder/said" || { tail -20 "$folder/said"; exit 1; }
"$folder/venv/bin/torchrun" --standalone --nproc_per_node 2 "$folder/count.py" 2> "$folder/said" || { tail -20 "$folder/said"; exit 1; }
