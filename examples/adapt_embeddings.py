"""Adapt frozen sentence embeddings with a small metric: a keyword must find the emoji that it describes.

    python examples/adapt_embeddings.py             # about a minute on two quiet cores, no network
    python examples/adapt_embeddings.py --quick     # seconds: one seed, a tenth of the emoji; shows that it runs

Query: a keyword. Document: an emoji's name. Both are embedded once by a pretrained encoder (MiniLM, 384 wide) that is
kept frozen; only the similarity is learned, by `fit_metric`, which tries every structure beside cosine and chooses on
validation emoji. The table that is printed is measured on emoji never trained on; seeds change the batches. At the end
the gallery goes into a FAISS index, once, and the same index answers before and after; a picture shows keywords whose
first result changed, evenly spaced among all of them.

Writes into --out: table.md, retrieved.png, learned.png, fit.png, and the metric.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import faiss
import torch
from data.emoji import load_emoji
from shared.pretrained import PACKAGED, embed_texts
from torch import Tensor

from gssf_plug import GSSFMetric
from gssf_plug.evaluation import document_ranking
from gssf_plug.metric import topk
from gssf_plug.retrieval import FitResult, fit_metric
from gssf_plug.retrieval.data.images import image_tensor
from gssf_plug.retrieval.plots import plot_metric, plot_retrieved

CHOICE = "fit_metric's choice"
MEASURES = {"R@1": "accuracy@1", "R@10": "accuracy@10", "mAP": "mAP"}
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

    @property
    def triple(self) -> tuple[Tensor, Tensor, Tensor]:
        """What `fit_metric` and `document_ranking` ask for."""
        return self.queries, self.gallery, self.relevant


def main() -> None:
    """Embed, fit, measure on emoji never trained on, search."""
    options = parse_options()
    splits = load_splits(options.model, options.every)
    print({name: f"{len(part.keywords)} keywords, {len(part.names)} emoji" for name, part in splits.items()})
    train, validation, test = (splits[name].triple for name in ("train", "validation", "test"))
    results = [fit_metric(*train, validation=validation, seed=seed) for seed in range(options.seeds)]
    print(f"\n{results[0]}\n")
    table = render(results, splits["test"])
    print(table)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "table.md").write_text(table)
    metric, name = results[0].metric, results[0].taken
    metric.save_pretrained(options.out / "metric")
    search(metric, splits["test"], options.model)
    results[0].plot().savefig(options.out / "fit.png", dpi=110)
    draw(metric, name, splits["test"], options.out)
    print(f"\nTable, pictures (fit.png, retrieved.png, learned.png) and metric are in {options.out}/")


def load_splits(model: str, every: int = 1) -> dict[str, Split]:
    """The three splits of every n-th emoji, embedded in one pass; an emoji appears once, whatever its vendors."""
    rows = load_emoji().select_columns(["label", "name", "keywords", "split"]).to_list()
    emoji = [row for label, row in {row["label"]: row for row in rows}.items() if label % every == 0]
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


def render(results: Sequence[FitResult], test: Split) -> str:
    """A Markdown table on test keywords: cosine, every candidate and what was taken, mean ± deviation over seeds."""
    lines = ["| similarity | parameters | " + " | ".join(MEASURES) + " | seconds |", "|---|" + "---:|" * 5]
    metrics = [{"cosine": None, **result.metrics, CHOICE: result.metric} for result in results]
    for name in metrics[0]:
        runs = [document_ranking(*test.triple, each[name]) for each in metrics]
        rows = [row for result in results for row in result.table if name in (row.name, CHOICE)]
        size = 0 if name == "cosine" else sum(p.numel() for p in metrics[0][name].parameters())
        cells = [cell([run[key] for run in runs]) for key in MEASURES.values()]
        lines.append(
            f"| {name} | {size:,} | "
            + " | ".join(cells)
            + f" | {sum(row.seconds for row in rows) / len(results):.1f} |"
        )
    taken = "; ".join(f"{name} ({times}×)" for name, times in Counter(result.taken for result in results).items())
    seeds = f"{len(results)} seed(s), mean ± standard deviation; emoji never trained on."
    return "\n".join(lines) + f"\n\n{seeds}\nChosen on validation: {taken}.\n"


def cell(values: Sequence[float]) -> str:
    """Mean ± standard deviation, which is 0 for one value."""
    return f"{mean(values):.1f} ± {stdev(values) if len(values) > 1 else 0.0:.1f}"


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


def draw(metric: GSSFMetric, name: str, data: Split, out: Path, shown: int = 8, k: int = 5) -> None:
    """retrieved.png: cosine beside the metric, where they differ. learned.png: the metric."""
    emoji = load_emoji("test")
    row_of = {label: row for row, label in reversed([*enumerate(emoji["label"][:])])}  # the first vendor that drew it
    cosine, ours = (topk(each, data.queries, data.gallery, k).indices for each in (None, metric))
    differ = (cosine[:, 0] != ours[:, 0]).nonzero()[:, 0]
    rows = differ[torch.linspace(0, len(differ) - 1, shown + 2).long()[1:-1]]  # evenly spaced, not chosen
    found = torch.cat([cosine, ours], dim=1)[rows]
    plot_retrieved(
        [data.keywords[row] for row in rows],
        [[image_tensor(emoji[row_of[data.labels[item]]]["image"]) for item in items] for items in found],
        data.relevant[rows].gather(1, found),
        systems=("cosine", name),
        title="Keywords whose first result changes, evenly spaced; right emoji framed, none trained on",
    ).savefig(out / "retrieved.png", dpi=200)
    plot_metric(metric, title=f"{name}: what was learned").savefig(out / "learned.png", dpi=110)


def parse_options() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=PACKAGED, help="Hub id or folder of a text encoder")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("outputs/adapt_embeddings"))
    parser.add_argument("--quick", action="store_true", help="one seed, every tenth emoji")
    options = parser.parse_args()
    options.every = 10 if options.quick else 1
    options.seeds = 1 if options.quick else options.seeds
    return options


if __name__ == "__main__":
    main()
