#!/usr/bin/env bash
# Found: adapters that PEFT puts on linear1 and linear2 of torch's nn.TransformerEncoderLayer are trained and then left out as soon as the
# model is in eval(): it answers exactly as the bare model did, to the last bit, with or without torch.no_grad(). LoRA, DoRA, LoHa, OFT,
# IA3 and VeRA alike. In eval() the layer takes a fused path that reads `linear1.weight` for itself and never calls linear1; PEFT's layer
# answers that name with the bare weight. torch looks for forward hooks and for weights that want gradients before it takes that path, and
# an adapter has neither. PEFT's guide on custom models promises adapters on any torch model; nothing warns.
# Why it matters: the training loss falls, while every validation, saved embedding and served answer is the bare model's, so that one takes
# it for overfitting; the saved adapter is right. Right are: the same model in train(), after merge_adapter() or with
# torch.backends.mha.set_fastpath_enabled(False), and a layer that has no such path (batch_first=False, an activation other than relu
# and gelu).
# Seen with peft 0.21.2, torch 2.13.0.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch==2.13.*" "peft==0.21.2" "transformers==5.24.0" "accelerate==1.15.0" "numpy<3" 2>/dev/null
cd "$folder"
venv/bin/python - 2> said <<'PY' || { tail -20 said; exit 1; }
import peft
import torch
from torch import nn
from torch.nn.functional import cross_entropy

torch.set_num_threads(1)
print(f"torch {torch.__version__}, peft {peft.__version__}")
torch.manual_seed(0)
rows, labels = torch.randn(4, 5, 16), torch.randint(4, (20,))


def bare(**options) -> nn.Module:
    """A small encoder with a head, the same on each call; no dropout, so that train() and eval() should answer alike."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, **{"batch_first": True, **options})
    return nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(16, 4))


def losses(config: peft.PeftConfig, **options) -> dict[str, float]:
    """Losses of the bare model and of the trained adapter, as each way of asking gives them."""
    model = peft.get_peft_model(bare(**options), config)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(100):
        optimizer.zero_grad()
        cross_entropy(model(rows).flatten(0, 1), labels).backward()
        optimizer.step()

    def now(net: nn.Module) -> float:
        return cross_entropy(net(rows).flatten(0, 1), labels).item()

    with torch.no_grad():
        found = {"bare": now(bare(**options).eval()), "train": now(model.train()), "eval": now(model.eval())}
        torch.backends.mha.set_fastpath_enabled(False)
        found["eval, no fast path"] = now(model)
        torch.backends.mha.set_fastpath_enabled(True)
    found["eval, gradients on"] = now(model)
    model.merge_adapter()
    found["eval, merged"] = now(model)
    return found


parts = {"target_modules": ["linear1", "linear2"]}
configs = {
    "LoRA": peft.LoraConfig(**parts), "DoRA": peft.LoraConfig(use_dora=True, **parts), "LoHa": peft.LoHaConfig(**parts),
    "OFT": peft.OFTConfig(r=0, oft_block_size=8, **parts), "IA3": peft.IA3Config(feedforward_modules=["linear2"], **parts),
    "VeRA": peft.VeraConfig(target_modules=["linear1"]),
}
for name, config in configs.items():
    found = losses(config)
    print(name, *(f"{way}: {loss:.3f}" for way, loss in found.items()), sep="; ")
    assert found["eval"] == found["eval, gradients on"] == found["bare"], "behaviour has changed"
    assert found["train"] < 0.9 * found["bare"], "behaviour has changed: it does not train"
    assert all(abs(found[way] - found["train"]) < 1e-3 for way in ("eval, no fast path", "eval, merged")), "behaviour has changed"
for name, options in {"batch_first=False": {"batch_first": False}, "activation=silu": {"activation": nn.functional.silu}}.items():
    found = losses(peft.LoraConfig(**parts), **options)
    print(f"LoRA, {name}", *(f"{way}: {loss:.3f}" for way, loss in found.items()), sep="; ")
    assert abs(found["eval"] - found["train"]) < 1e-3 < found["bare"] - found["eval"], "behaviour has changed"
PY
