#!/usr/bin/env bash
# Found: inside torch.nn.utils.parametrize.cached(), a forward pass under torch.no_grad() leaves its weights in the cache, and the
# passes that follow train nothing of them: the cached tensor has no graph, so weights under orthogonal, weight_norm, spectral_norm or a
# parametrization of one's own get no gradient at all. Biases and plain layers get theirs, so backward() and the optimizer run and the
# loss goes down. Asked in the other order all is well. torch.autocast's cache of cast weights, of the same make, looks whether
# gradients are wanted and is right either way. The documentation asks to wrap the forward pass "in training and evaluation".
# Why it matters: distillation from one's own outputs, targets made without gradients, gradient caching for large contrastive batches and
# an evaluation at the loop's start all look without gradients first. Close the cache between the two, or take gradients first.
# Seen with torch 2.13.0.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch==2.13.*" "numpy<3" 2>/dev/null
"$folder/venv/bin/python" - <<'PY'
from contextlib import nullcontext

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

torch.set_num_threads(1)
print("torch", torch.__version__)


def trained(wrap, cache, order) -> tuple[float, bool, bool]:
    """Loss after training over the first, whether the parametrized weight moved, and whether its bias did."""
    torch.manual_seed(0)
    layer = wrap(nn.Linear(8, 8))
    net = nn.Sequential(layer, nn.Tanh(), nn.Linear(8, 4))
    x, target = torch.randn(32, 8), torch.randn(32, 4)
    start = {name: value.detach().clone() for name, value in net.named_parameters()}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2)
    losses = []
    for _ in range(20):
        with cache():
            for wanted in order:
                with torch.set_grad_enabled(wanted):
                    out = net(x)
                    loss = (out - target).square().mean() if wanted else None
                if wanted:
                    optimizer.zero_grad()
                    loss.backward()
                    losses.append(loss.item())
        optimizer.step()
    moved = {name for name, value in net.named_parameters() if not torch.equal(value, start[name])}
    return losses[-1] / losses[0], any(name.startswith("0.parametrizations") for name in moved), "0.bias" in moved


cast = lambda: torch.autocast("cpu", torch.bfloat16)  # noqa: E731
first, after = (False, True), (True, False)
for wrap in (parametrizations.orthogonal, parametrizations.weight_norm, parametrizations.spectral_norm):
    found = {
        "no cache": trained(wrap, nullcontext, first), "cached, gradients first": trained(wrap, parametrize.cached, after),
        "cached, no_grad first": trained(wrap, parametrize.cached, first), "autocast, no_grad first": trained(wrap, cast, first),
    }
    for name, (loss, weight, bias) in found.items():
        moved = " and ".join(part for part, does in (("weight", weight), ("bias", bias)) if does)
        print(f"{wrap.__name__}, {name}: loss × {loss:.2f}, moved: {moved}")
    loss, weight, bias = found.pop("cached, no_grad first")
    assert loss < 0.95 and not weight and bias, "behaviour has changed"
    assert all(weight and bias for _, weight, bias in found.values()), "behaviour has changed"
PY
