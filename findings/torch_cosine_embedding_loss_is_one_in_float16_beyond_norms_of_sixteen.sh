#!/usr/bin/env bash
# Found: torch's CosineEmbeddingLoss in float16 is exactly 1 for every pair that should be alike and exactly 0 for every pair that should
# not, with a gradient of zero, where the norms' geometric mean is between 16 and 256 (beyond, it is nan). It multiplies the two squared
# norms before it takes the root, and 16 to the fourth is 65,536, which float16 does not hold: the cosine becomes x / inf = 0. Any output
# of a LayerNorm wider than 256 is that long (its norm is the root of its width), so hidden states of 384, 768 or 1,024 are all
# "orthogonal", a vector to itself included; of 192 and fewer they are right. Loss scaling does not help: nothing is inf or nan by the
# time one looks. F.cosine_similarity on the same vectors is right (it once did the same, pytorch #69512), and so is the loss in bfloat16
# or under torch.autocast, which makes it float32.
# Why it matters: it is DistilBERT's third loss, on hidden states; a student and a teacher kept in float16 (model.half(), a checkpoint
# stored so) train as though the term were not there, the loss stays at a plausible constant, and tests on small widths pass. Cast to
# float32, or take 1 - F.cosine_similarity. Seen with torch 2.13.0 on a CPU.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch==2.13.*" "numpy<3" 2>/dev/null
"$folder/venv/bin/python" - 2> "$folder/said" <<'PY' || { tail -20 "$folder/said"; exit 1; }
from contextlib import nullcontext

import torch
from torch.nn import functional as F

torch.set_num_threads(1)
torch.manual_seed(0)
print("torch", torch.__version__)


def cosine_loss(student: torch.Tensor, teacher: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
    """The same loss as F.cosine_embedding_loss, margin 0, by F.cosine_similarity."""
    cosine = F.cosine_similarity(student, teacher)
    return torch.where(same > 0, 1 - cosine, cosine.relu()).mean()


def asked(loss, width: int, dtype: torch.dtype, target: int, cast: bool) -> tuple[float, float]:
    """Loss between hidden states whose cosine is about 0.995, and its gradient's norm over that in float32."""
    teacher = F.layer_norm(torch.randn(8, width), (width,)).to(dtype)
    student = (teacher + 0.1 * torch.randn(8, width)).to(dtype).requires_grad_()
    same = torch.full((8,), float(target))
    with torch.autocast("cpu", dtype) if cast else nullcontext():
        found = loss(student, teacher, same)
    found.backward()
    exact = student.detach().float().requires_grad_()
    cosine_loss(exact, teacher.float(), same).backward()
    return found.item(), (student.grad.float().norm() / exact.grad.norm()).item()


half, brain = torch.float16, torch.bfloat16
ways = {
    "loss in float16": (F.cosine_embedding_loss, half, False), "loss in bfloat16": (F.cosine_embedding_loss, brain, False),
    "loss under autocast": (F.cosine_embedding_loss, half, True), "cosine_similarity in float16": (cosine_loss, half, False),
}
for width in (64, 128, 192, 272, 384, 768, 1024):
    for target in (1, -1):
        right = {1: 0.005, -1: 0.995}[target]
        for name, (loss, dtype, cast) in ways.items():
            value, gradient = asked(loss, width, dtype, target, cast)
            print(f"width {width}, target {target:2}, {name}: {value:.4f}, gradient {gradient:.2f} of what it should be")
            if name == "loss in float16" and width > 256:
                assert (value, gradient) == ({1: 1.0, -1: 0.0}[target], 0.0), "behaviour has changed"
            else:
                assert abs(value - right) < 0.01 and abs(gradient - 1) < 0.1, "behaviour has changed"
PY
