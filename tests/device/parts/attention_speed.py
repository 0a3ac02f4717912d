"""Patched ÷ bare and merged ÷ bare for prefill and a training step, with every attention kernel, plain and compiled."""

import torch
from torch import nn
from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel

from device.record import Record
from device.variants import Bench, missing_kernels, variants


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
    bench = Bench(record, device, quick, rounds=3 if quick else 20)
    missing = missing_kernels(device)
    kernels = ["sdpa"] if quick else ["eager", "sdpa", "flash_attention_2"]
    for title, build, batch, length in (("BERT-base", bert, 32, 512), ("Llama of 24 layers", llama, 8, 1024)):
        given = {"input_ids": torch.randint(1000, (2, 16) if quick else (batch, length), device=device)}
        for kernel in kernels:
            if kernel in missing:
                record.not_run(f"{title}, {kernel}", missing[kernel])
                continue
            with record.step(f"{title}, {kernel}"):
                models = variants(build(quick), kernel, device)
                bench.prefill(f"{title}, {kernel}", models, given)
                bench.training(f"{title}, {kernel}", models, given)
        if quick:
            record.not_run(
                f"{title}, torch.compile", "left out by --quick; tests/attention/properties/test_compiled.py has it"
            )
            continue
        with record.step(f"{title}, compiled"):
            models = variants(build(quick), "sdpa", device)
            bench.prefill(f"{title}, compiled", {name: torch.compile(m) for name, m in models.items()}, given)
