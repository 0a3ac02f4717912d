"""What tools that change a model leave of the metric, patched and merged first: the table of docs/howto/deploy.md.

    python tests/tools/deploy.py          # runs the tools that are installed, and names the others

A tool keeps the metric where the outputs afterwards are nearer to those of the patched model than 0.3 of the way to the
bare one (8-bit weights of these small models cost up to 0.2).
"""

import importlib.metadata
import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

sys.path.insert(0, str(Path(__file__).parents[1]))

from attention.patching import hidden, perturb
from attention.small_models import IDS, small_bert, small_llama

from gssf_plug.attention import patch_attention

Tool = Callable[[nn.Module], nn.Module | None]


def quanto(model: nn.Module) -> None:
    """int8 weights."""
    from optimum.quanto import freeze, qint8, quantize

    quantize(model, weights=qint8)
    freeze(model)


def torchao(model: nn.Module) -> None:
    """int8 weights."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(model, Int8WeightOnlyConfig())


def neural_compressor(model: nn.Module) -> nn.Module:
    """8-bit weights, rounded to nearest."""
    from neural_compressor.torch.quantization import RTNConfig, convert, prepare

    return convert(prepare(model, RTNConfig(bits=8, group_size=-1)))


def nncf(model: nn.Module) -> nn.Module:
    """8-bit weights."""
    from nncf import CompressWeightsMode, Dataset, compress_weights

    return compress_weights(model, mode=CompressWeightsMode.INT8_ASYM, dataset=Dataset([{"input_ids": IDS}]))


def quantize_dynamic(model: nn.Module) -> nn.Module:
    """torch's own int8."""
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


def weight_norm(model: nn.Module) -> None:
    """A reparametrisation that changes nothing by itself."""
    for module in [module for name, module in model.named_modules() if name.endswith(("query", "q_proj"))]:
        parametrizations.weight_norm(module)


def pruned(model: nn.Module) -> None:
    """5% of the query weights."""
    for module in [module for name, module in model.named_modules() if name.endswith(("query", "q_proj"))]:
        prune.l1_unstructured(module, "weight", amount=0.05)


TOOLS: dict[str, tuple[str, Tool]] = {
    "quanto quantize": ("optimum-quanto", quanto),
    "torchao quantize_": ("torchao", torchao),
    "neural-compressor RTN": ("neural-compressor", neural_compressor),
    "nncf compress_weights": ("nncf", nncf),
    "torch quantize_dynamic": ("torch", quantize_dynamic),
    "torch weight_norm": ("torch", weight_norm),
    "torch prune": ("torch", pruned),
}


def distance(make: Callable[[], nn.Module], tool: Tool, merged: bool) -> float:
    """How far the outputs have gone from the patched model's, in parts of the way to the bare one's."""
    model = make()
    patch = patch_attention(model, block_size=4)
    torch.manual_seed(0)
    perturb(patch)
    before, bare = hidden(model, IDS), hidden(make(), IDS)
    if merged:
        patch.merge()
    changed = tool(model) or model
    return float((hidden(changed, IDS) - before).abs().mean() / (bare - before).abs().mean())


def main() -> None:
    """The rows, as Markdown."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    print("| tool | version | BERT patched | BERT merged | Llama patched | Llama merged |\n|---|---|---|---|---|---|")
    for name, (package, tool) in TOOLS.items():
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            print(f"| {name} | not installed: `pip install {package}` | | | | |")
            continue
        found = [distance(make, tool, merged) for make in (small_bert, small_llama) for merged in (False, True)]
        cells = " | ".join(f"{'kept' if part < 0.3 else 'LOST'} ({part:.2f})" for part in found)
        print(f"| {name} | {version} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
