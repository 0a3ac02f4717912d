"""Put a gallery into FAISS once, search it under any metric, and keep index and metric together.

    python examples/search_index.py             # about a minute on two cores, no network
    python examples/search_index.py --quick     # seconds: a tenth of the emoji, a barely trained metric

Gallery: thousands of keywords; query: an emoji's name. A metric is trained on training emoji; the encoder (MiniLM) is
frozen. `metric.gallery(items)` is free of W, so every index is built once, before the metric is trained, and the same
index then answers `metric.fold(queries)` of cosine and of the trained metric: a new W needs no re-indexing. Each answer
is compared with the exact one of its own metric (`topk`). Approximate indexes are built for cosine's neighbours, so the
further a metric is from cosine, the more they may miss: the table shows how much.

    Flat          all items, float32: exact
    IVF64,Flat    64 cells, 8 of them visited
    HNSW32        a graph with 32 links
    SQ8           all items, one byte per channel

Writes into --out: metric/ (safetensors, JSON) and one .faiss file per index, and searches once more from these files.
"""

import argparse
import time
from pathlib import Path

import faiss
import torch
from adapt_embeddings import Split, load_splits
from shared.pretrained import PACKAGED, embed_texts
from torch import Tensor

from gssf_plug import GSSFMetric
from gssf_plug.metric import topk
from gssf_plug.retrieval import fit_metric

INDEXES = ("Flat", "IVF64,Flat", "HNSW32", "SQ8")
K = 10
SHOWN = ("snowman", "birthday cake", "crying cat")


def main() -> None:
    """Embed, index, train, search, save, load, search again."""
    options = parse_options()
    splits = {name: swapped(split) for name, split in load_splits(options.model, options.every).items()}
    words, gallery = every_keyword(splits)
    queries = splits["test"].queries
    neutral = GSSFMetric(gallery.shape[1])
    indexes = {name: build_index(name, neutral.gallery(gallery)) for name in INDEXES}
    train, validation = splits["train"].triple, splits["validation"].triple
    fitted = fit_metric(*train, validation=validation, structures=[{}], loss="softmax", max_epochs=options.epochs)
    (trained,) = fitted.metrics.values()
    print(f"{len(queries)} queries, {len(words):,} keywords; the metric has changed by {trained.penalty():.2f}\n")
    table = render(indexes, {"cosine": neutral, "trained": trained}, queries, gallery)
    print(table)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "table.md").write_text(table)
    save(options.out, trained, indexes)
    show(options.out, words, options.model)


def swapped(split: Split) -> Split:
    """Names ask, keywords answer."""
    return Split(split.names, split.keywords, split.relevant.T.contiguous(), split.gallery, split.queries)


def every_keyword(splits: dict[str, Split]) -> tuple[list[str], Tensor]:
    """The keywords of all splits, each once, with their embeddings."""
    vectors = {word: row for split in splits.values() for word, row in zip(split.names, split.gallery, strict=True)}
    return list(vectors), torch.stack(list(vectors.values()))


def build_index(name: str, items: Tensor) -> faiss.Index:
    """An inner-product index over gallery vectors."""
    cells = min(64, len(items) // 40)  # faiss wants about forty items for each cell
    index = faiss.index_factory(items.shape[1], name.replace("64", str(cells)), faiss.METRIC_INNER_PRODUCT)
    index.train(items.numpy())
    index.add(items.numpy())
    if isinstance(index, faiss.IndexIVF):
        index.nprobe = 8
    return index


def search(index: faiss.Index, metric: GSSFMetric, queries: Tensor) -> Tensor:
    """Rows of the K best, (N, K)."""
    return torch.from_numpy(index.search(metric.fold(queries).detach().numpy(), K)[1])


def render(indexes: dict[str, faiss.Index], metrics: dict[str, GSSFMetric], queries: Tensor, gallery: Tensor) -> str:
    """A Markdown table: how many of the exact K each index finds under each metric, and at what cost."""
    exact = {name: topk(metric, queries, gallery, K).indices for name, metric in metrics.items()}
    lines = [f"| index | {' | '.join(f'found, {name}' for name in metrics)} | ms per query | MB |"]
    lines.append("|---|" + "---:|" * (len(metrics) + 2))
    for name, index in indexes.items():
        began = time.perf_counter()
        found = {metric: search(index, metrics[metric], queries) for metric in metrics}
        seconds = (time.perf_counter() - began) / (len(metrics) * len(queries))
        shares = [f"{100 * overlap(found[metric], exact[metric]):.1f} %" for metric in metrics]
        size = len(faiss.serialize_index(index)) / 1e6
        lines.append(f"| {name} | {' | '.join(shares)} | {1000 * seconds:.3f} | {size:.1f} |")
    changed = 100 * (1 - overlap(*exact.values()))
    return "\n".join(lines) + f"\n\n{changed:.1f} % of the exact {K} nearest changed with the metric; no index did.\n"


def overlap(one: Tensor, other: Tensor) -> float:
    """Share of the items of each row that the other's row holds too."""
    return (one[:, :, None] == other[:, None, :]).any(dim=2).double().mean().item()


def save(folder: Path, metric: GSSFMetric, indexes: dict[str, faiss.Index]) -> None:
    """Metric and indexes side by side: what has to be deployed."""
    metric.save_pretrained(folder / "metric")
    for name, index in indexes.items():
        faiss.write_index(index, str(folder / f"{name.replace(',', '-')}.faiss"))


def show(folder: Path, words: list[str], model: str) -> None:
    """Search from the files alone."""
    metric = GSSFMetric.from_pretrained(folder / "metric")
    index = faiss.read_index(str(folder / "Flat.faiss"))
    queries = embed_texts(SHOWN, model)
    sides = {"cosine": GSSFMetric(metric.dim), "trained": metric}
    for query, *rows in zip(SHOWN, *(search(index, side, queries) for side in sides.values()), strict=True):
        print(f"{query!r}")
        for side, row in zip(sides, rows, strict=True):
            print(f"  {side:>7}: " + ", ".join(words[item] for item in row[:5]))


def parse_options() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=PACKAGED, help="Hub id or folder of a text encoder")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("outputs/search_index"))
    parser.add_argument("--quick", action="store_true", help="two epochs, every tenth emoji")
    options = parser.parse_args()
    options.every = 10 if options.quick else 1
    options.epochs = min(options.epochs, 2) if options.quick else options.epochs
    return options


if __name__ == "__main__":
    main()
