"""What tools that change a model leave of the metric, patched and merged first: the table of docs/howto/deploy.md.

    python tests/tools/deploy.py          # runs the tools that are installed, and names the others

Converters are asked through their own runtime: ONNX Runtime, with and without its quantisation, and CTranslate2.

A tool keeps the metric where the outputs afterwards are nearer to those of the patched model than 0.3 of the way to the
bare one (8-bit weights of these small models cost up to 0.2).
"""

import importlib.metadata
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

sys.path.insert(0, str(Path(__file__).parents[1]))

from attention.patching import hidden, perturb
from attention.small_models import IDS, small_bert, small_llama
from transformers import BertModel, BertTokenizer, PreTrainedTokenizerFast

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


class Converted(nn.Module):
    """What a runtime gives for token ids, as the first output of a model.

    Args:
        run: ids (n, length) -> outputs (n, length, width), as arrays.
    """

    def __init__(self, run: Callable[[np.ndarray], np.ndarray]) -> None:
        super().__init__()
        self.run = run

    def forward(self, ids: Tensor) -> tuple[Tensor]:
        return (torch.from_numpy(np.asarray(self.run(ids.numpy()))),)


class First(nn.Module):
    """One input, one output: what an exporter wants."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(input_ids=ids, use_cache=False)[0]


def onnx(model: nn.Module, *, quantised: bool = False) -> nn.Module:
    """ONNX by torch's exporter, run by ONNX Runtime."""
    import onnxruntime

    folder = Path(tempfile.mkdtemp())
    file = folder / "model.onnx"
    torch.onnx.export(First(model), (IDS,), file, dynamo=True, verbose=False)
    if quantised:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(file, file := folder / "quantised.onnx", weight_type=QuantType.QInt8)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return Converted(lambda ids: session.run(None, {session.get_inputs()[0].name: ids})[0])


def onnx_quantised(model: nn.Module) -> nn.Module:
    """Its int8 weights."""
    return onnx(model, quantised=True)


def openvino(model: nn.Module) -> nn.Module:
    """OpenVINO's converter; of a Llama it refuses the bare model, too."""
    import openvino

    compiled = openvino.compile_model(openvino.convert_model(First(model), example_input=IDS), "CPU")
    return Converted(lambda ids: compiled(ids)[0])


def executorch(model: nn.Module) -> nn.Module:
    """ExecuTorch's portable operators, through `torch.export`."""
    from executorch.exir import to_edge
    from executorch.runtime import Runtime

    with torch.no_grad():
        program = to_edge(torch.export.export(First(model), (IDS,))).to_executorch()
    method = Runtime.get().load_program(program.buffer).load_method("forward")
    return Converted(lambda ids: method.execute([torch.from_numpy(ids)])[0].numpy().copy())


def dora_on_top(model: nn.Module) -> nn.Module:
    """Before it is trained, which must change nothing."""
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(use_dora=True, target_modules=["query", "q_proj"])).eval()


def ctranslate2(model: nn.Module) -> nn.Module:
    """Its converter reads a folder, which needs a tokenizer."""
    import ctranslate2

    folder, words = tempfile.mkdtemp(), [f"w{number}" for number in range(64)]
    if isinstance(model, BertModel):
        model.config.position_embedding_type = "absolute"  # transformers 5 no longer has it, and the converter asks
        words[:5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        tokenizer: object = BertTokenizer(dict(zip(words, range(64), strict=True)))
    else:
        vocabulary = models.WordLevel(dict(zip(words, range(64), strict=True)), unk_token=words[0])
        named = {"unk_token": words[0], "bos_token": words[1], "eos_token": words[2]}
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(vocabulary), **named)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)  # type: ignore[attr-defined]
    made = ctranslate2.converters.TransformersConverter(folder).convert(f"{folder}/converted")
    if isinstance(model, BertModel):
        encoder = ctranslate2.Encoder(made)
        return Converted(lambda ids: encoder.forward_batch(ids.tolist()).last_hidden_state)
    generator = ctranslate2.Generator(made)
    return Converted(lambda ids: generator.forward_batch([[words[token] for token in row] for row in ids.tolist()]))


TOOLS: dict[str, tuple[str, Tool]] = {
    "quanto quantize": ("optimum-quanto", quanto),
    "torchao quantize_": ("torchao", torchao),
    "neural-compressor RTN": ("neural-compressor", neural_compressor),
    "nncf compress_weights": ("nncf", nncf),
    "torch quantize_dynamic": ("torch", quantize_dynamic),
    "torch weight_norm": ("torch", weight_norm),
    "torch prune": ("torch", pruned),
    "PEFT, DoRA on top, untrained": ("peft", dora_on_top),
    "ONNX Runtime": ("onnxruntime", onnx),
    "ONNX Runtime quantize_dynamic": ("onnxruntime", onnx_quantised),
    "OpenVINO convert_model": ("openvino", openvino),
    "CTranslate2's converter": ("ctranslate2", ctranslate2),
    "ExecuTorch": ("executorch", executorch),
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


def cell(make: Callable[[], nn.Module], tool: Tool, merged: bool) -> str:
    """Kept or lost, or that the tool refuses the model; then it must refuse the plain one, too."""
    try:
        part = distance(make, tool, merged)
    except Exception as error:  # whatever a tool raises
        try:
            tool(make())
        except type(error):
            return f"refused, like the bare model ({type(error).__name__})"
        raise
    return f"{'kept' if part < 0.3 else 'LOST'} ({part:.2f})"


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
        cells = " | ".join(cell(make, tool, merged) for make in (small_bert, small_llama) for merged in (False, True))
        print(f"| {name} | {version} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
