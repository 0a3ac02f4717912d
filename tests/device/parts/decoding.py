"""Generation of a SmolLM2-shaped model: same tokens patched and merged, the offloaded cache, time of 256 tokens."""

import copy
from collections.abc import Callable

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, StaticCache

from device.record import Record, compared, peak_mebibytes, timed
from device.variants import cache_argument
from gssf_plug.attention import patch_attention

PATCHED = 1.05


def run(record: Record, device: torch.device, quick: bool) -> None:
    size = (2, 48, 3, 3, 96) if quick else (30, 576, 9, 3, 1536)
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size")
    config = LlamaConfig(
        vocab_size=512 if quick else 49_152, pad_token_id=0, eos_token_id=None, **dict(zip(names, size, strict=True))
    )
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    bare = LlamaForCausalLM(config).to(device, dtype).eval()
    patched = copy.deepcopy(bare)
    patch = patch_attention(patched, block_size=8)
    ids = torch.randint(1, 500, (1, 16), device=device)
    count = 8 if quick else 256
    write = lambda model, **options: model.generate(ids, max_new_tokens=count, do_sample=False, **options)  # noqa: E731
    with record.step("neutral"):
        record.equal("neutral: the same tokens", torch.equal(write(bare), write(patched)))
    with torch.no_grad():
        for parameter in patch.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    tokens = write(patched)
    with record.step("caches"):
        for cache in ("static", "offloaded") if device.type == "cuda" else ("static",):
            same = (write(patched, cache_implementation=cache) == tokens).double().mean().item()
            record.at_least(f"{cache} cache: share of equal tokens", same, 1.0)
        if device.type != "cuda":
            record.not_run("offloaded cache", "its streams need a GPU")
    with record.step("time"):
        runs = {"bare": lambda: write(bare), "patched": lambda: write(patched)}
        value, shown = compared(timed(runs, device, 1 if quick else 4), "patched", "bare")
        name = f"decode of {count} tokens, token by token, patched ÷ bare"
        record.measured(name, shown)
        record.measured("peak memory, patched", peak_mebibytes(runs["patched"], device))
    if device.type == "cuda" and not quick:
        with record.step("graph captured"):
            _graphs(record, bare, patched, device)
    else:
        record.not_run("decoding with CUDA graphs", "needs a GPU and no --quick")
    with record.step("merged"):
        patch.merge()
        same = (write(patched) == tokens).double().mean().item()
        record.at_least("merged: share of equal tokens", same, 0.99 if dtype == torch.bfloat16 else 1.0)


def _graphs(record: Record, bare: LlamaForCausalLM, patched: LlamaForCausalLM, device: torch.device) -> None:
    """One step at a fixed position with a static cache, captured as a CUDA graph, replayed."""
    runs = {name: captured(model, device) for name, model in (("bare", bare), ("patched", patched))}
    value, shown = compared(timed(runs, device, 50), "patched", "bare")
    record.at_most("decode of one token, CUDA graph, patched ÷ bare", value, PATCHED, shown)


@torch.inference_mode()
def captured(model: PreTrainedModel, device: torch.device) -> Callable[[], object]:
    """A token of a decoder behind a static cache; the call replays the graph."""
    cache = StaticCache(config=model.config, max_cache_len=512)
    token = torch.ones(1, 1, dtype=torch.long, device=device)
    place = torch.full((1, 1), 256, device=device)
    given = {cache_argument(model): cache, "use_cache": True}
    call = lambda: model(input_ids=token, position_ids=place, **given)  # noqa: E731
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    held = (cache, token, place)  # what the graph reads and writes: nobody else may get that memory
    return lambda: (graph.replay(), held)
