#!/usr/bin/env bash
# Found: pytorch-metric-learning's NTXentLoss on float16 embeddings gives the hardest positives no gradient. It makes the share of the
# positive by exp and division, adds the smallest normal number of the dtype and takes the logarithm: in float16 that number is 0.00006,
# so the loss never passes 9.70 and its slope fades before. Where the nearest negative has a cosine of 0.8, at temperature 0.05 the
# gradient of a positive at 0.3 is less than half of what it should be, that of one at 0.0 is 0.2 % of it, and at -0.2 it is zero, where
# in float32 the hardest positives are pulled most. Also inside torch.autocast on a CPU, where float16 embeddings stay so. bfloat16 is
# right, and so is the same loss by F.cross_entropy in float16. Nothing is inf or nan, so loss scaling sees nothing.
# Why it matters: the library supports half precision, and a model under float16 autocast gives float16 embeddings; the positives that it
# still gets wrong are dropped, while the loss looks better than the true one. Close pairs, as in small tests, are right.
# Pass embeddings.float(). Seen with pytorch-metric-learning 2.9.0, torch 2.13.0 on a CPU.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch==2.13.*" "pytorch-metric-learning==2.9.0" "numpy<3" 2>/dev/null
cd "$folder"
venv/bin/python - 2> said <<'PY' || { tail -20 said; exit 1; }
from importlib.metadata import version

import torch
from pytorch_metric_learning.losses import NTXentLoss
from torch.nn import functional as F

torch.set_num_threads(1)
print("torch", torch.__version__, "pytorch-metric-learning", version("pytorch-metric-learning"))
axes, labels = torch.eye(8), torch.tensor([0, 0, 1, 2])
one_anchor = (torch.tensor([0]), torch.tensor([1]), torch.tensor([0, 0]), torch.tensor([2, 3]))  # its positive and two negatives


def entropy(rows: torch.Tensor, temperature: float) -> torch.Tensor:
    """The same loss by cross-entropy: the first row is the anchor, the second its positive, the others negatives."""
    rows = F.normalize(rows)
    return F.cross_entropy(rows[:1] @ rows[1:].T / temperature, torch.tensor([0]))


def library(rows: torch.Tensor, temperature: float) -> torch.Tensor:
    """The library's loss."""
    return NTXentLoss(temperature=temperature)(rows, labels, one_anchor)


def asked(loss, cosine: float, temperature: float, dtype: torch.dtype, cast: bool = False) -> tuple[float, float]:
    """Loss and length of the positive's gradient, the nearest negative being at a cosine of 0.8."""
    cosines = torch.tensor([[1.0], [cosine], [0.8], [0.1]])
    rows = (cosines * axes[0] + (1 - cosines**2).sqrt() * axes[1:5]).to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.float16, enabled=cast):
        found = loss(rows, temperature)
    found.backward()
    return found.item(), rows.grad[1].float().norm().item()


half, brain, full = torch.float16, torch.bfloat16, torch.float32
for temperature in (0.07, 0.05):
    for cosine in (0.6, 0.3, 0.0, -0.2, -0.5):
        right = asked(library, cosine, temperature, full)
        found = {
            "float16": asked(library, cosine, temperature, half), "float16, autocast": asked(library, cosine, temperature, half, True),
            "bfloat16": asked(library, cosine, temperature, brain), "cross-entropy, float16": asked(entropy, cosine, temperature, half),
        }
        share = {name: gradient / right[1] for name, (_, gradient) in found.items()}
        print(f"temperature {temperature}, positive at {cosine}: float32 {right[0]:.2f}", end="")
        print("", *(f"{name} {found[name][0]:.2f}, gradient × {share[name]:.3f}" for name in found), sep="; ")
        for name in ("bfloat16", "cross-entropy, float16"):
            assert abs(share[name] - 1) < 0.02 and abs(found[name][0] / right[0] - 1) < 0.02, "behaviour has changed"
        most = {0.6: 1.01, 0.3: 0.95, 0.0: 0.2, -0.2: 0.02, -0.5: 0.001}[cosine]
        assert all(share[name] < most for name in ("float16", "float16, autocast")), "behaviour has changed"
        assert found["float16"][0] < 9.75, "behaviour has changed"
PY
