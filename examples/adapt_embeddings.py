"""Adapt frozen sentence embeddings with a small metric: a keyword must find the emoji that it describes.

    python examples/adapt_embeddings.py             # about two minutes on two cores, no network
    python examples/adapt_embeddings.py --quick     # seconds: one seed, a tenth of the emoji; shows that it runs

Query: a keyword. Document: an emoji's name. Both are embedded once by a pretrained encoder (MiniLM, 384 wide) that is
kept frozen; only the similarity is learned, with InfoNCE, on emoji of the training split. The epoch is chosen on
validation emoji, and the table is measured on emoji never trained on. Seeds change the order of the batches and the
start of the low-rank baseline. Cosine with a learned scale ranks as cosine does: scale alone moves nothing here.
At the end the gallery goes into a FAISS index, once, and the same index answers before and after; a picture shows
keywords whose first result changed, evenly spaced among all of them.

Writes into --out: table.md, retrieved.png, learned.png, and the metric.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import faiss
import torch
from data.emoji import load_emoji
from shared.baselines import FixedCosine, LowRank, ScaledCosine
from shared.pretrained import PACKAGED, embed_texts
from torch import Tensor, nn
from tqdm.auto import tqdm

from gssf_plug import GSSFMetric
from gssf_plug.losses import InfoNCE
from gssf_plug.metric import topk
from gssf_plug.retrieval.data.images import image_tensor
from gssf_plug.retrieval.plots import plot_metric, plot_retrieved

MEASURES = ("R@1", "R@10", "mAP")
SHOWN = "GSSF both, block 64"
QUERIES_SHOWN = ("celebration", "broken heart", "cold weather", "music", "delicious")


@dataclass(frozen=True)
class Split:
    """Keywords K, names C of one split, and which keyword describes which emoji."""

    keywords: list[str]
    names: list[str]
    relevant: Tensor  # (K, C) boolean
    queries: Tensor  # (K, D) embedded keywords
    gallery: Tensor  # (C, D) embedded names
    labels: Sequence[int] = ()  # of the emoji, to find their drawings


def main() -> None:
    """Embed, train each variant for each seed, print the table, search."""
    options = parse_options()
    splits = load_splits(options.model, options.every)
    width = splits["train"].queries.shape[1]
    print({name: f"{len(part.keywords)} keywords, {len(part.names)} emoji" for name, part in splits.items()})
    runs = [(name, build, seed) for name, build in variants(width) for seed in range(options.seeds)]
    results: dict[str, list[dict[str, float]]] = {}
    for name, build, seed in tqdm(runs, desc="training"):
        metric, measured = adapt(build, splits, seed, options.epochs)
        results.setdefault(name, []).append(measured)
        if name == SHOWN and seed == 0:
            adapted = metric
    table = render(results)
    print("\n" + table)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "table.md").write_text(table)
    adapted.save_pretrained(options.out / "metric")
    search(adapted, splits["test"], options.model)
    draw(adapted, splits["test"], options.out)
    print(f"\nTable, pictures (retrieved.png, learned.png) and metric are in {options.out}/")


def variants(width: int) -> list[tuple[str, Callable[[], nn.Module]]]:
    """Baselines first; each low-rank row has about the parameters of the block row it is named after."""
    rank = {block: (width + width * block) // (2 * width) for block in (16, 64)}
    return [
        ("cosine", lambda: FixedCosine(width)),
        ("cosine + learned scale", lambda: ScaledCosine(width)),
        ("GSSF Diag", lambda: GSSFMetric(width, terms=("diagonal",))),
        ("GSSF B-Diag, block 16", lambda: GSSFMetric(width, terms=("block_diagonal",), block_size=16)),
        ("GSSF both, block 16", lambda: GSSFMetric(width, block_size=16)),
        (f"low-rank {rank[16]} (as block 16)", lambda: LowRank(width, rank[16])),
        ("GSSF both, block 64", lambda: GSSFMetric(width, block_size=64)),
        (f"low-rank {rank[64]} (as block 64)", lambda: LowRank(width, rank[64])),
        ("GSSF both, block 128", lambda: GSSFMetric(width, block_size=128)),
        ("full matrix", lambda: GSSFMetric(width, terms=("dense",))),
    ]


def load_splits(model: str, every: int = 1) -> dict[str, Split]:
    """The three splits of every n-th emoji, embedded in one pass; an emoji appears once, whatever its vendors."""
    columns = load_emoji().select_columns(["label", "name", "keywords", "split"])
    emoji = [row for label, row in {row["label"]: row for row in columns}.items() if label % every == 0]
    texts = sorted({text for row in emoji for text in (row["name"], *row["keywords"])})
    vectors = embed_texts(texts, model)
    place = {text: position for position, text in enumerate(texts)}

    def split(part: str) -> Split:
        rows = [row for row in emoji if row["split"] == part]
        keywords = sorted({keyword for row in rows for keyword in row["keywords"]})
        names = [row["name"] for row in rows]
        position = {keyword: number for number, keyword in enumerate(keywords)}
        relevant = torch.zeros(len(keywords), len(names), dtype=torch.bool)
        for column, row in enumerate(rows):
            relevant[[position[keyword] for keyword in row["keywords"]], column] = True
        queries, gallery = (vectors[[place[text] for text in side]] for side in (keywords, names))
        return Split(keywords, names, relevant, queries, gallery, [row["label"] for row in rows])

    return {part: split(part) for part in ("train", "validation", "test")}


def adapt(
    build: Callable[[], nn.Module], splits: dict[str, Split], seed: int, epochs: int
) -> tuple[nn.Module, dict[str, float]]:
    """Train one metric; keep the epoch that is best on validation; measure it once on test."""
    torch.manual_seed(seed)
    metric, loss, began = build(), InfoNCE(), time.perf_counter()
    parameters = [*metric.parameters()]
    optimizer = torch.optim.AdamW([*parameters, *loss.parameters()], lr=1e-3, weight_decay=0.0)
    best, kept = measure(metric, splits["validation"])["mAP"], snapshot(metric)
    for epoch in range(epochs if parameters else 0):
        train_epoch(metric, loss, optimizer, splits["train"])
        if epoch % 3 == 2 or epoch == epochs - 1:
            score = measure(metric, splits["validation"])["mAP"]
            if score > best:
                best, kept = score, snapshot(metric)
    metric.load_state_dict(kept)
    cost = {"parameters": sum(p.numel() for p in parameters), "seconds": time.perf_counter() - began}
    return metric, {**measure(metric, splits["test"]), **cost}


def train_epoch(
    metric: nn.Module, loss: nn.Module, optimizer: torch.optim.Optimizer, data: Split, batch_size: int = 256
) -> None:
    """One pass over all (keyword, emoji) pairs; every pair of the batch that describes counts as a positive."""
    pairs = data.relevant.nonzero()
    for batch in pairs[torch.randperm(len(pairs))].split(batch_size):
        keyword, emoji = batch.T
        scores = metric(data.queries[keyword], data.gallery[emoji])
        value = loss(scores, data.relevant[keyword][:, emoji])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()


def measure(metric: nn.Module, data: Split) -> dict[str, float]:
    """R@1, R@10 (is any right emoji among the first k?) and mAP, in %, over all keywords of a split."""
    order = topk(metric, data.queries, data.gallery, len(data.names)).indices
    right = data.relevant.gather(1, order)
    precision = right.cumsum(1) / torch.arange(1, right.shape[1] + 1)
    average = (precision * right).sum(1) / right.sum(1)
    recall = {f"R@{k}": 100 * right[:, :k].any(1).float().mean().item() for k in (1, 10)}
    return {**recall, "mAP": 100 * average.mean().item()}


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """A copy of the parameters."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def render(results: dict[str, list[dict[str, float]]]) -> str:
    """A Markdown table, mean ± standard deviation over seeds."""
    lines = ["| similarity | parameters | " + " | ".join(MEASURES) + " | seconds |", "|---|" + "---:|" * 5]
    for name, runs in results.items():
        cells = [f"{mean(run[key] for run in runs):.1f} ± {spread([run[key] for run in runs]):.1f}" for key in MEASURES]
        seconds = mean(run["seconds"] for run in runs)
        lines.append(f"| {name} | {runs[0]['parameters']:,} | " + " | ".join(cells) + f" | {seconds:.1f} |")
    seeds = len(next(iter(results.values())))
    return "\n".join(lines) + f"\n\n{seeds} seed(s), mean ± standard deviation; emoji never trained on.\n"


def spread(values: list[float]) -> float:
    """Standard deviation; 0 for one value."""
    return stdev(values) if len(values) > 1 else 0.0


def search(metric: GSSFMetric, data: Split, model: str) -> None:
    """The gallery side is free of W: one index, built once, answers for cosine and for any metric."""
    index = faiss.IndexFlatIP(metric.dim)
    index.add(metric.gallery(data.gallery).numpy())
    queries = embed_texts(QUERIES_SHOWN, model)
    sides = {"before": metric.gallery(queries), "after": metric.fold(queries).detach()}
    found = {side: index.search(vectors.numpy(), 4)[1] for side, vectors in sides.items()}
    for number, query in enumerate(QUERIES_SHOWN):
        print(f"\n{query!r}")
        for side, rows in found.items():
            print(f"  {side:>6}: " + ", ".join(data.names[row] for row in rows[number]))


def draw(metric: GSSFMetric, data: Split, out: Path, shown: int = 8, k: int = 5) -> None:
    """retrieved.png: cosine beside the metric, where they differ. learned.png: the metric."""
    emoji = load_emoji("test")
    row_of = {label: row for row, label in reversed([*enumerate(emoji["label"])])}  # the first vendor that drew it
    cosine, ours = (topk(each, data.queries, data.gallery, k).indices for each in (FixedCosine(metric.dim), metric))
    differ = (cosine[:, 0] != ours[:, 0]).nonzero()[:, 0]
    rows = differ[torch.linspace(0, len(differ) - 1, shown + 2).long()[1:-1]]  # evenly spaced, not chosen
    found = torch.cat([cosine, ours], dim=1)[rows]
    plot_retrieved(
        [data.keywords[row] for row in rows],
        [[image_tensor(emoji[row_of[data.labels[item]]]["image"]) for item in items] for items in found],
        data.relevant[rows].gather(1, found),
        systems=("cosine", SHOWN),
        title="Keywords whose first result changes, evenly spaced; right emoji framed, none trained on",
    ).savefig(out / "retrieved.png", dpi=200)
    plot_metric(metric, title=f"{SHOWN}: what was learned").savefig(out / "learned.png", dpi=110)


def parse_options() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=PACKAGED, help="Hub id or folder of a text encoder")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("outputs/adapt_embeddings"))
    parser.add_argument("--quick", action="store_true", help="one seed, two epochs, every tenth emoji")
    options = parser.parse_args()
    options.every = 10 if options.quick else 1
    if options.quick:
        options.seeds, options.epochs = 1, 2
    return options


if __name__ == "__main__":
    main()
