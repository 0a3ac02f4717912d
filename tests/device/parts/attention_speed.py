"""Patched ÷ bare and merged ÷ bare for prefill and a training step, with every attention kernel, plain and compiled."""

import copy
import importlib.util
from collections.abc import Callable

import torch
from torch import nn
from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel

from device.record import Record, compared, peak_mebibytes, timed
from gssf_plug.attention import patch_attention

PATCHED, MERGED = 1.03, 1.00
NOISE = 0.01  # what two identical models differ by; merged = bare is shown up to it


def bert(quick: bool) -> nn.Module:
    shape = (
        {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128} if quick else {}
    )
    return BertModel(BertConfig(vocab_size=1000, **shape), add_pooling_layer=False)


def llama(quick: bool) -> nn.Module:
    size = (2, 64, 4, 2, 128) if quick else (24, 1024, 16, 8, 2816)
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size")
    return LlamaModel(LlamaConfig(vocab_size=1000, **dict(zip(names, size, strict=True))))


def run(record: Record, device: torch.device, quick: bool) -> None:
    kernels = ["sdpa"] if quick else ["eager", "sdpa"]
    if device.type == "cuda" and importlib.util.find_spec("flash_attn"):
        kernels.append("flash_attention_2")
    else:
        record.not_run("flash_attention_2", "flash_attn is not installed" if device.type == "cuda" else "needs a GPU")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    for title, build, batch, length in (("BERT-base", bert, 32, 512), ("Llama of 24 layers", llama, 8, 1024)):
        ids = torch.randint(1000, (2, 16) if quick else (batch, length), device=device)
        for kernel in kernels:
            with record.step(f"{title}, {kernel}"):
                _compare(
                    record, f"{title}, {kernel}", _variants(build(quick), kernel, device, dtype), ids, device, quick
                )
        if quick:
            record.not_run(
                f"{title}, torch.compile", "left out by --quick; tests/attention/properties/test_compiled.py has it"
            )
            continue
        with record.step(f"{title}, compiled"):
            models = _variants(build(quick), "sdpa", device, dtype)
            compiled = {name: torch.compile(model) for name, model in models.items()}
            _compare(record, f"{title}, compiled", compiled, ids, device, quick, train=False)


def _variants(bare: nn.Module, kernel: str, device: torch.device, dtype: torch.dtype) -> dict[str, nn.Module]:
    """Bare, bare once more (the noise), patched away from neutral, merged; weights shared where they do not differ."""
    bare = bare.to(device, dtype).eval().requires_grad_(False)
    bare.set_attn_implementation(kernel)
    models = {
        "bare": bare,
        "bare again": copy.deepcopy(bare),
        "patched": copy.deepcopy(bare),
        "merged": copy.deepcopy(bare),
    }
    for name in ("patched", "merged"):
        patch = patch_attention(models[name], block_size=8)
        with torch.no_grad():
            for parameter in patch.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.01)
        if name == "merged":
            patch.merge()
    models["bare"].get_input_embeddings().weight.requires_grad_(True)
    for name in ("bare again", "merged"):
        models[name].get_input_embeddings().weight.requires_grad_(True)
    return models


def _compare(
    record: Record,
    title: str,
    models: dict[str, nn.Module],
    ids: torch.Tensor,
    device: torch.device,
    quick: bool,
    train: bool = True,
) -> None:
    rounds = 3 if quick else 20
    workloads: dict[str, Callable[[nn.Module], Callable[[], object]]] = {"prefill": lambda model: _forward(model, ids)}
    if train:
        workloads["training step"] = lambda model: _step(model, ids)
    for work, make in workloads.items():
        runs = {name: make(model) for name, model in models.items()}
        seconds = timed(runs, device, rounds)
        noise, shown = compared(seconds, "bare again", "bare")
        record.measured(f"{title}, {work}: bare again ÷ bare", shown)
        for name, limit in (("patched", PATCHED), ("merged", MERGED + NOISE)):
            value, shown = compared(seconds, name, "bare")
            if quick or device.type != "cuda":
                record.measured(f"{title}, {work}: {name} ÷ bare", shown)
            else:
                record.at_most(f"{title}, {work}: {name} ÷ bare", value, limit + max(0.0, noise - 1), shown)
        record.measured(f"{title}, {work}: peak memory, patched", peak_mebibytes(runs["patched"], device))


def _forward(model: nn.Module, ids: torch.Tensor) -> Callable[[], object]:
    return torch.inference_mode()(lambda: model(input_ids=ids))


def _step(model: nn.Module, ids: torch.Tensor) -> Callable[[], object]:
    def step() -> None:
        model.zero_grad(set_to_none=True)
        model(input_ids=ids).last_hidden_state.float().square().mean().backward()

    return step
