#!/usr/bin/env bash
# Found: on a CPU the gradients of a LayerNorm's weight and bias are summed over the rows in bfloat16 (or float16) wherever the rows
# are such, also under torch.autocast, where the parameters and their gradients are float32 (on CUDA autocast makes layer_norm float32,
# on a CPU it does not). Such a sum stops growing: with a gradient of 1 from each of 16,384 rows the bias gets 256 in place of 16,384
# (2,048 in float16). From random gradients of mean one it gets 26 % at 4,096 rows and 7 % at 16,384; from such of mean zero, 7 and
# 14 % of noise. Linear, RMSNorm, GroupNorm and BatchNorm stay within 0.2 %. Each thread has a sum of its own, so the number of threads
# changes the gradient (256 by one, 512 by two). Why it matters: the forward pass is right and nothing warns; the norms learn at another
# rate than the layers beside them, the more so the larger the batch, and gradient checks on a few rows pass. In small BERTs of
# transformers under autocast the norm of the language-model head was off by 16 and 32 % at 8,192 tokens; those that follow a float32
# residual sum were right.
# F.layer_norm(x.float(), ...).to(x.dtype) is the way round. Seen with torch 2.13.0 on an AMD EPYC (Zen 4).
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch==2.13.*" "numpy<3" 2>/dev/null
"$folder/venv/bin/python" - 2> "$folder/said" <<'PY' || { tail -20 "$folder/said"; exit 1; }
import torch
from torch import nn

torch.set_num_threads(1)
torch.manual_seed(0)
print("torch", torch.__version__)


def of_bias(rows: int, dtype: torch.dtype) -> float:
    """Gradient of one bias where each row sends 1 back, with a Linear before the norm under autocast."""
    linear, norm = nn.Linear(64, 64), nn.LayerNorm(64)
    with torch.autocast("cpu", dtype):
        out = norm(linear(torch.randn(rows, 64)))
    out.float().sum().backward()
    assert norm.bias.grad.dtype == torch.float32
    return norm.bias.grad[0].item()


def error(layer: nn.Module, rows: int, shift: float) -> float:
    """Relative error of the layer's gradients, parameters in float32, rows in bfloat16, against all in float32."""
    x, back = (torch.randn(rows, 64).bfloat16() + s for s in (0, shift))
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            out = layer(x.to(dtype))
        out.backward(back.to(out.dtype))
        found.append(torch.cat([p.grad.flatten() for p in layer.parameters()]))
    return ((found[1] - found[0]).norm() / found[0].norm()).item()


layers = {"LayerNorm": nn.LayerNorm(64), "RMSNorm": nn.RMSNorm(64), "Linear": nn.Linear(64, 64)}
layers |= {"GroupNorm": nn.GroupNorm(4, 64), "BatchNorm": nn.BatchNorm1d(64)}
bias = {rows: [of_bias(rows, dtype) for dtype in (torch.bfloat16, torch.float16)] for rows in (128, 1024, 16384)}
for rows, (brain, half) in bias.items():
    print(f"{rows} rows that send 1 back: the bias gets {brain:.0f} in bfloat16, {half:.0f} in float16")
errors = {}
for rows, shift in ((4096, 0), (16384, 0), (4096, 1), (16384, 1)):
    errors[rows, shift] = {name: error(layer, rows, shift) for name, layer in layers.items()}
    print(f"{rows} random rows, shift {shift}: " + ", ".join(f"{name} {100 * off:.1f} %" for name, off in errors[rows, shift].items()))
assert bias == {128: [128, 128], 1024: [256, 1024], 16384: [256, 2048]}, "behaviour has changed"
assert all(off.pop("LayerNorm") > 0.04 and max(off.values()) < 0.01 for off in errors.values()), "behaviour has changed"
PY
