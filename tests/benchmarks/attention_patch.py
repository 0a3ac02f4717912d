"""What a patched model costs beside the bare one and beside PEFT, on the same query projections.

    python tests/benchmarks/attention_patch.py --output docs/benchmarks_attention.md      # about fifteen minutes

Claims: patched ÷ bare ≤ 1.06 at sequence 128 and ≤ 1.03 at 512 (BERT-base shape, upper end of the interval); not slower
than PEFT's IA3 beyond noise; merged = bare. All variants run in turns in one process; see `measure`.
"""

import argparse
import copy
import inspect
import tempfile
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from measure import interleave, machine, peak_megabytes, ratio
from peft import IA3Config, LoraConfig, OFTConfig, get_peft_model
from torch import nn
from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel

from gssf_plug.attention import AttentionPatch, patch_attention

torch.manual_seed(0)
CACHE = "cache" if "cache" in inspect.signature(LlamaModel.forward).parameters else "past_key_values"  # before 5.24


@dataclass(frozen=True)
class Variant:
    """One way to make the queries trainable."""

    name: str
    prepare: Callable[[nn.Module, str], tuple[nn.Module, Callable[[Path], object]]]
    trains: bool = True


def away_from_neutral(model: nn.Module, *terms: str) -> AttentionPatch:
    """A patch with random entries, the base frozen."""
    patch = patch_attention(model, terms=terms, block_size=8)
    patch.freeze_base()
    with torch.no_grad():
        for parameter in patch.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.01)
    return patch


def metric(model: nn.Module, query: str, *terms: str, merge: bool = False) -> tuple[nn.Module, Callable]:
    """Ours, away from neutral."""
    patch = away_from_neutral(model, *(terms or ("diagonal", "block_diagonal")))
    if merge:
        for name, parameter in model.named_parameters():
            if f".{query}." in name:
                parameter.data = parameter.data.clone()  # merging writes into it
        patch.merge()
    return model, patch.save_pretrained


def folded(model: nn.Module, query: str) -> tuple[nn.Module, Callable]:
    """Ours inside `patch.folded()`, for as long as the benchmark runs."""
    patch = away_from_neutral(model, "diagonal", "block_diagonal")
    HELD.enter_context(patch.folded())
    return model, patch.save_pretrained


HELD = ExitStack()


def peft(config: Callable) -> Callable:
    """PEFT's adapter of that kind on the query projections."""

    def prepare(model: nn.Module, query: str) -> tuple[nn.Module, Callable]:
        made = get_peft_model(model, config(query))
        return made, made.save_pretrained

    return prepare


VARIANTS = [
    Variant("bare again", lambda model, query: (model, lambda folder: None)),
    Variant("GSSF Diag", lambda model, query: metric(model, query, "diagonal")),
    Variant("GSSF both, block 8", metric),
    Variant("GSSF both, folded", folded, trains=False),
    Variant("GSSF merged", lambda model, query: metric(model, query, merge=True)),
    Variant("PEFT IA3", peft(lambda query: IA3Config(target_modules=[query], feedforward_modules=[]))),
    Variant("PEFT LoRA r=8", peft(lambda query: LoraConfig(target_modules=[query], r=8))),
    Variant("PEFT OFT", peft(lambda query: OFTConfig(target_modules=[query], oft_block_size=8, r=0))),
]


def bert() -> nn.Module:
    """BERT-base's shape."""
    return BertModel(BertConfig(vocab_size=1000), add_pooling_layer=False).eval()


def llama() -> nn.Module:
    """A small Llama."""
    shape = {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4}
    return LlamaModel(LlamaConfig(vocab_size=1000, intermediate_size=1376, **shape)).eval()


def forward(length: int) -> Callable[[nn.Module], Callable[[], object]]:
    """A forward pass without gradients."""
    ids = torch.randint(1000, (1, length))

    def make(model: nn.Module) -> Callable[[], object]:
        return torch.no_grad()(lambda: model(input_ids=ids))

    return make


def training(length: int) -> Callable[[nn.Module], Callable[[], object]]:
    """Forward and backward to what the variant trains (bare: to the input embeddings, a fair floor)."""
    ids = torch.randint(1000, (1, length))

    def make(model: nn.Module) -> Callable[[], object]:
        if not any(p.requires_grad for p in model.parameters()) or all(p.requires_grad for p in model.parameters()):
            model.requires_grad_(False)
            for module in model.modules():
                if isinstance(module, nn.Embedding) and module.num_embeddings == 1000:
                    module.weight.requires_grad_(True)

        def step() -> None:
            model.zero_grad(set_to_none=True)
            model(input_ids=ids).last_hidden_state.square().mean().backward()

        return step

    return make


def decode(length: int) -> Callable[[nn.Module], Callable[[], object]]:
    """One token after a cache of `length`."""
    ids, token = torch.randint(1000, (1, length)), torch.randint(1000, (1, 1))

    def make(model: nn.Module) -> Callable[[], object]:
        with torch.no_grad():
            cache = model(input_ids=ids, use_cache=True)[CACHE]

        def step() -> None:
            with torch.no_grad():
                model(input_ids=token, use_cache=True, **{CACHE: cache})
            cache.crop(-1)

        return step

    return make


CASES = [
    ("BERT-base, 128 tokens, forward", bert, "query", forward(128)),
    ("BERT-base, 512 tokens, forward", bert, "query", forward(512)),
    ("BERT-base, 128 tokens, training step", bert, "query", training(128)),
    ("BERT-base, 512 tokens, training step", bert, "query", training(512)),
    ("small Llama, prefill of 256", llama, "q_proj", forward(256)),
    ("small Llama, decode after 256", llama, "q_proj", decode(256)),
]


def twin(model: nn.Module) -> nn.Module:
    """A copy whose parameters share the memory of `model`'s: where weights lie alone makes a difference of 2%."""
    return copy.deepcopy(model, {id(p): nn.Parameter(p.data, p.requires_grad) for p in model.parameters()})


def file_kilobytes(save: Callable[[Path], object]) -> float:
    """Size of the adapter's weights on disk."""
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder))
        return sum(file.stat().st_size for file in Path(folder).glob("*.safetensors")) / 1000


def measured(
    title: str, build: Callable, query: str, workload: Callable, rounds: int, names: Collection[str]
) -> list[str]:
    """One table: all variants in turns in one process."""
    bare = build()
    able = [variant for variant in VARIANTS if variant.trains or "training" not in title]
    built = {variant.name: variant.prepare(twin(bare), query) for variant in able if variant.name in names}
    runs = {"bare": workload(bare)} | {name: workload(model) for name, (model, _) in built.items()}
    seconds = interleave(runs, rounds)
    head = "| variant | ÷ bare | ÷ IA3 | adapter kB | memory MB |"
    lines = [
        "",
        f"## {title}",
        "",
        f"Bare: {1000 * median(seconds['bare']):.1f} ms.",
        "",
        head,
        "|---|---:|---:|---:|---:|",
    ]
    for name, (_, save) in built.items():
        beside = (ratio(seconds[name], seconds[other]) for other in ("bare", "PEFT IA3"))
        memory = peak_megabytes(runs[name])
        lines.append(f"| {name} | {' | '.join(map(str, beside))} | {file_kilobytes(save):,.0f} | {memory:.1f} |")
    print("\n".join(lines), flush=True)
    return lines


def main() -> None:
    """All cases and variants, as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--cases", type=int, nargs="*", default=range(len(CASES)), help="numbers of cases; default all")
    known = [variant.name for variant in VARIANTS]
    parser.add_argument("--variants", nargs="*", choices=known, default=known, help="default all; PEFT IA3 always")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    lines = [
        "# Cost of a patched attention",
        "",
        f"`python tests/benchmarks/attention_patch.py --rounds {options.rounds}` on {machine()}. Time of a variant ÷ "
        "time of another in the same round: median [95% bootstrap interval]. “bare again” is the noise of the method.",
    ]
    with HELD:
        for title, build, query, workload in (CASES[number] for number in options.cases):
            lines += measured(title, build, query, workload, options.rounds, {*options.variants, "PEFT IA3"})
    if options.output:
        options.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
