"""Seconds that `patch_attention` and `load_attention` take, beside those of another revision of this library.

    git worktree add ../then 2d6a9af
    python tests/benchmarks/attention_patching.py ../then            # three minutes on one thread

Llama of 24 layers, 1,024 wide, 279 M parameters, at random weights. Both revisions patch the same model in one process,
by turns. Each keeps its own modules: the package of the one is taken out of `sys.modules` before the other is imported.
"""

import argparse
import importlib
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

import torch
from measure import interleave, machine, ratio
from transformers import LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).resolve().parents[2]


def build(layers: int) -> LlamaForCausalLM:
    """The model, 279 M parameters where it has 24 layers."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=1024, num_hidden_layers=layers, num_attention_heads=16, num_key_value_heads=4,
        intermediate_size=2816, vocab_size=4000,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def attention_of(folder: Path) -> ModuleType:
    """`gssf_plug.attention` as the checkout in `folder` has it."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "gssf_plug"]:
        del sys.modules[name]
    sys.path.insert(0, str(folder))
    try:
        module = importlib.import_module("gssf_plug.attention")
    finally:
        sys.path.remove(str(folder))
    assert module.__file__ is not None
    assert Path(module.__file__).is_relative_to(folder), module.__file__
    return module


def patch(attention: ModuleType, model: LlamaForCausalLM) -> None:
    """Patch and remove; removing takes no time worth the name."""
    attention.patch_attention(model).remove()


def load(attention: ModuleType, model: LlamaForCausalLM, folder: str) -> None:
    """Load an adapter and remove it."""
    attention.load_attention(model, folder).remove()


@torch.no_grad()
def forward(model: LlamaForCausalLM) -> None:
    """One forward pass over eleven tokens, for scale: the examples of the probe are as long."""
    model(input_ids=torch.arange(11)[None])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("then", type=Path, help="a checkout of the revision to compare with")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = build(options.layers)
    now, then = attention_of(HERE), attention_of(options.then.resolve())
    with tempfile.TemporaryDirectory() as folder:
        handle = then.patch_attention(model)
        handle.save_pretrained(folder)
        handle.remove()
        candidates: dict[str, Callable[[], object]] = {
            "patch_attention, now": partial(patch, now, model),
            "patch_attention, then": partial(patch, then, model),
            "load_attention, now": partial(load, now, model, folder),
            "load_attention, then": partial(load, then, model, folder),
            "forward, 11 tokens": partial(forward, model),
        }
        seconds = interleave(candidates, options.rounds, warmup=1)
    print(machine())
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.0f} M parameters, {options.rounds} rounds")
    for name, times in seconds.items():
        print(f"{name:<24} {sorted(times)[len(times) // 2]:8.3f} s")
    for what in ("patch_attention", "load_attention"):
        print(f"{what}: now ÷ then {ratio(seconds[f'{what}, now'], seconds[f'{what}, then'])}")


if __name__ == "__main__":
    main()
