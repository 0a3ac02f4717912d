"""Adapt a frozen text encoder through its attention: q·k becomes qᵀAk in all layers, and only A is trained.

    python examples/patch_attention.py             # the table of docs/attention.md; resumable, some thirty minutes
    python examples/patch_attention.py --quick     # seconds: three rows, one seed, few steps; shows that it runs

Query: a keyword. Document: an emoji's name. Both go through the same encoder (MiniLM, 6 layers, 384 wide), trained
with InfoNCE on emoji of the training split. Beside the metric: PEFT's IA3 and LoRA on the same query projections, LoRA
also at the metric's own numbers of parameters, full fine-tuning, and no training. Every row's learning rate is the best
of three on validation emoji with seed 0; whether half of the steps were enough is decided there for each seed. The mAP
is measured on emoji never trained on; below the table, rows of equal parameters are compared in pairs.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from data.emoji import load_emoji
from peft import IA3Config, LoraConfig, PeftConfig, get_peft_model
from shared.pretrained import PACKAGED, load_text_encoder
from shared.runs import append, difference, finished
from torch import Tensor, nn
from torch.nn.functional import normalize
from tqdm.auto import tqdm

from gssf_plug.attention import patch_attention
from gssf_plug.features import mean_pool
from gssf_plug.losses import InfoNCE

Save = Callable[[Path], object]

DIAGONAL_RATES, BLOCK_RATES = (1e-1, 3e-2, 3e-1), (3e-2, 1e-2, 1e-1)  # --quick takes the first
LORA_RATES, FULL_RATES = (1e-2, 3e-3, 3e-2), (1e-4, 3e-5, 3e-4)
PAIRS = [  # of equal parameters
    ("GSSF Diag", "IA3 on query"),
    ("GSSF B-Diag 8", "LoRA r=4 on query"),
    ("GSSF whole head", "LoRA r=16 on query"),
]


@dataclass(frozen=True)
class Split:
    """Keywords K, names C of one split, and which keyword describes which emoji."""

    keywords: list[str]
    names: list[str]
    relevant: Tensor  # (K, C) boolean


@dataclass(frozen=True)
class Method:
    """One row: how the encoder is made trainable, and the learning rates to choose from (none: no training)."""

    name: str
    prepare: Callable[[nn.Module], tuple[nn.Module, Save]]
    rates: tuple[float, ...] = ()


def main() -> None:
    """Run what the log lacks, print and keep the table."""
    options = parse_options()
    splits = load_splits(options.every, options.keywords)
    print({name: f"{len(part.keywords)} keywords, {len(part.names)} emoji" for name, part in splits.items()})
    log = options.out / "runs.jsonl"
    rows = methods(options.quick)
    for seed, method in tqdm([(seed, row) for seed in range(options.seeds) for row in rows], desc="runs"):
        done = finished(log)
        if (method.name, seed) in done or (seed and not method.rates):
            continue
        rates = method.rates or (0.0,) if seed == 0 else (done[method.name, 0]["rate"],)
        tried = [adapt(method, rate, splits, seed, options) for rate in rates[: 1 if options.quick else None]]
        best = max(tried, key=lambda run: run["validation"])
        append(log, method.name, seed, best | {"tried": {run["rate"]: run["validation"] for run in tried}})
    table = render(finished(log))
    (options.out / "table.md").write_text(table)
    print(table)


def methods(quick: bool) -> list[Method]:
    """The rows. LoRA's ranks 4 and 16 have exactly the parameters of B-Diag 8 and of a whole head."""
    metric = {
        "GSSF Diag": ({"terms": ("diagonal",)}, DIAGONAL_RATES),
        "GSSF B-Diag 8": ({"terms": ("block_diagonal",), "block_size": 8}, BLOCK_RATES),
        "GSSF both, block 8": ({"terms": ("diagonal", "block_diagonal"), "block_size": 8}, BLOCK_RATES),
        "GSSF whole head": ({"terms": ("dense",)}, BLOCK_RATES),
    }
    rows = [Method("no training", train_nothing)]
    rows += [Method(name, partial(train_metric, **kw), rates) for name, (kw, rates) in metric.items()]
    rows.append(Method("IA3 on query", partial(train_peft, config=ia3()), DIAGONAL_RATES))
    for rank in (1, 4, 16):
        rows.append(Method(f"LoRA r={rank} on query", partial(train_peft, config=lora(rank)), LORA_RATES))
    rows.append(Method("full fine-tuning", train_all, FULL_RATES))
    return [rows[0], rows[3], rows[5]] if quick else rows


def train_nothing(model: nn.Module) -> tuple[nn.Module, Save]:
    """The encoder as it came."""
    return model.requires_grad_(False), lambda folder: None


def train_metric(model: nn.Module, **options: Any) -> tuple[nn.Module, Save]:
    """This library: patch, freeze the rest."""
    patch = patch_attention(model, **options)
    patch.freeze_base()
    return model, patch.save_pretrained


def train_peft(model: nn.Module, config: PeftConfig) -> tuple[nn.Module, Save]:
    """PEFT's adapters on the same projections."""
    model = get_peft_model(model, config)
    return model, model.save_pretrained


def train_all(model: nn.Module) -> tuple[nn.Module, Save]:
    """Every weight."""
    return model, model.save_pretrained


def ia3() -> PeftConfig:
    """A learned factor per channel of the query: the diagonal case of the metric."""
    return IA3Config(target_modules=["query"], feedforward_modules=[])


def lora(rank: int) -> PeftConfig:
    """A low-rank addition to the query projection."""
    return LoraConfig(r=rank, lora_alpha=rank, target_modules=["query"])


def adapt(
    method: Method, rate: float, splits: dict[str, Split], seed: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Train one row once; keep the step that is best on validation; measure it once on test."""
    torch.manual_seed(seed)
    tokenizer, encoder = load_text_encoder(options.model)
    model, save = method.prepare(encoder)
    embed = partial(embed_texts, model, tokenizer)
    loss, began = InfoNCE(), time.perf_counter()
    trained = [p for p in model.parameters() if p.requires_grad]
    best, kept, steps = average_precision(embed, splits["validation"]).mean().item(), snapshot(model), 0
    if trained:
        groups = [{"params": trained, "lr": rate}, {"params": [*loss.parameters()], "lr": 1e-3}]
        optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [rate, 1e-3], total_steps=options.steps + 1)
        for step in range(1, options.steps + 1):
            train_step(embed, loss, optimizer, splits["train"], options.batch_size)
            schedule.step()
            if step % (options.steps // 2) == 0:
                score = average_precision(embed, splits["validation"]).mean().item()
                if score > best:
                    best, kept, steps = score, snapshot(model), step
    model.load_state_dict(kept, strict=False)
    return {
        "rate": rate,
        "steps": steps,
        "validation": best,
        "seconds": time.perf_counter() - began,
        "parameters": sum(p.numel() for p in trained),
        "kB": saved_size(save),
        "mAP": [round(value, 2) for value in average_precision(embed, splits["test"]).tolist()],
    }


def train_step(
    embed: Callable[[list[str]], Tensor], loss: nn.Module, optimizer: torch.optim.Optimizer, data: Split, size: int
) -> None:
    """One batch of (keyword, emoji) pairs; every pair of the batch that describes counts as a positive."""
    pairs = data.relevant.nonzero()
    keyword, emoji = pairs[torch.randperm(len(pairs))[:size]].T
    queries = embed([data.keywords[row] for row in keyword.tolist()])
    documents = embed([data.names[row] for row in emoji.tolist()])
    value = loss(queries @ documents.T, data.relevant[keyword][:, emoji])
    optimizer.zero_grad()
    value.backward()
    optimizer.step()


def embed_texts(model: nn.Module, tokenizer: Any, texts: list[str]) -> Tensor:
    """Normalised mean-pooled embeddings, one row per text. In evaluation mode throughout: no dropout."""
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))  # little padding: short texts together
    rows = []
    for chosen in (order[at : at + 32] for at in range(0, len(order), 32)):
        batch = tokenizer([texts[row] for row in chosen], padding=True, truncation=True, return_tensors="pt")
        rows.append(mean_pool(model(**batch).last_hidden_state, batch["attention_mask"]))
    return normalize(torch.cat(rows)[torch.tensor(order).argsort()], dim=-1)


@torch.no_grad()
def average_precision(embed: Callable[[list[str]], Tensor], data: Split) -> Tensor:
    """Average precision of each keyword over the names of its split, in %."""
    queries, gallery = embed(data.keywords), embed(data.names)
    right = data.relevant.gather(1, (queries @ gallery.T).argsort(dim=1, descending=True))
    precision = right.cumsum(1) / torch.arange(1, right.shape[1] + 1)
    return 100 * (precision * right).sum(1) / right.sum(1)


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """A copy of what is trained."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def saved_size(save: Save) -> float:
    """Size of the weights that would be shipped, in kB."""
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder))
        return sum(file.stat().st_size for file in Path(folder).glob("*.safetensors")) / 1000


def load_splits(every: int, most_keywords: int) -> dict[str, Split]:
    """The three splits of every n-th emoji; at most so many keywords to evaluate, spread over the alphabet."""
    rows = load_emoji().select_columns(["label", "name", "keywords", "split"]).to_list()
    emoji = [row for label, row in {row["label"]: row for row in rows}.items() if label % every == 0]

    def split(part: str) -> Split:
        rows = [row for row in emoji if row["split"] == part]
        keywords = sorted({keyword for row in rows for keyword in row["keywords"]})
        if part != "train":
            keywords = keywords[:: max(1, len(keywords) // most_keywords)]
        relevant = torch.tensor([[keyword in row["keywords"] for row in rows] for keyword in keywords])
        return Split(keywords, [row["name"] for row in rows], relevant)

    return {part: split(part) for part in ("train", "validation", "test")}


def render(runs: dict[tuple[str, int], dict[str, Any]]) -> str:
    """A Markdown table, mean ± standard deviation over seeds, and the paired tests."""
    lines = ["| | trained parameters | test mAP | seconds | adapter kB | rate |", "|---|---:|---:|---:|---:|---:|"]
    names = list(dict.fromkeys(name for name, _ in runs))
    for name in names:
        own = [run for (other, _), run in runs.items() if other == name]
        scores = [mean(run["mAP"]) for run in own]
        spread = f"{mean(scores):.2f} ± {stdev(scores) if len(scores) > 1 else 0.0:.2f}"
        seconds = mean(run["seconds"] for run in own)
        first = own[0]
        lines.append(
            f"| {name} | {first['parameters']:,} | {spread} | {seconds:.0f} | {first['kB']:,.0f} | {first['rate']:g} |"
        )
    seeds = max(seed for _, seed in runs) + 1
    lines += ["", f"{seeds} seed(s), mean ± standard deviation.", ""]
    for pair in (pair for pair in PAIRS if {*pair} <= {*names}):
        lines.append("- " + difference({key: run for key, run in runs.items() if key[0] in pair}, "mAP", pair[:1]))
    return "\n".join(lines) + "\n"


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=PACKAGED, help="a BERT-like encoder: Hub id, folder, or the packaged MiniLM")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--every", type=int, default=1, help="use every n-th emoji")
    parser.add_argument("--keywords", type=int, default=600)
    parser.add_argument("--out", type=Path, default=Path("patch_attention"))
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.steps, options.batch_size, options.every, options.keywords = 1, 8, 32, 8, 60
    return options


if __name__ == "__main__":
    main()
