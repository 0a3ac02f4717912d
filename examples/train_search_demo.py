"""Make the checkpoint of `search_demo.py`: an encoder of drawings, and a metric on frozen features.

    python examples/train_search_demo.py            # a few minutes on two cores, no network
    python examples/train_search_demo.py --quick    # seconds: every sixteenth emoji, one epoch; shows that it runs

1. A small CNN learns to put a drawing where a frozen MiniLM puts its captions (InfoNCE over captions).
2. Everything is frozen, and a GSSFMetric of one seed learns to find an emoji's name from a keyword, and from a drawing.

Both are trained on the training emoji alone; epochs are chosen on validation emoji, and the printed table is measured
on test emoji, which neither saw. Writes --output: image_encoder.safetensors, metric/, table.md.
"""

import argparse
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from data.emoji import load_emoji
from shared.baselines import FixedCosine
from shared.drawing_encoder import SIZE, DrawingEncoder
from shared.pretrained import PACKAGED, embed_texts
from torch import Tensor, nn
from tqdm.auto import tqdm

from gssf_plug import GSSFMetric
from gssf_plug.files import CardFacts
from gssf_plug.losses import InfoNCE
from gssf_plug.metric import topk
from gssf_plug.retrieval.data.images import image_tensor

BLOCK = 16
PARTS = ("train", "validation", "test")
FOLDER = Path(__file__).resolve().parent / "data" / "search_demo"


@dataclass
class Split:
    """The emoji of one split: names to search in, keywords and drawings to search with."""

    names: Tensor  # (E, D) embedded names
    words: Tensor  # (K, D) embedded keywords
    word_finds: Tensor  # (K, E) which emoji a keyword describes
    pixels: Tensor  # (N, 3, 32, 32) bytes
    drawn: Tensor  # (N,) which emoji is drawn
    captions: Tensor  # (E, 2, D) embedded captions
    drawings: Tensor | None = None  # (N, D) encoded pixels, once there is an encoder

    def queries(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Features of each kind of query, and which emoji they should find."""
        assert self.drawings is not None
        found = nn.functional.one_hot(self.drawn, len(self.names)).bool()
        return {"words": (self.words, self.word_finds), "drawings": (self.drawings, found)}


def load_splits(model: str, every: int) -> dict[str, Split]:
    """Training, validation and test emoji, embedded in one pass."""
    emoji = load_emoji()
    kept = [row for row, label in enumerate(emoji["label"][:]) if label % every == 0]
    rows = list(tqdm(emoji.select(kept), desc="reading emoji"))
    texts = sorted({text for row in rows for text in (row["name"], *row["captions"], *row["keywords"])})
    vector = dict(zip(texts, embed_texts(texts, model), strict=True))
    return {part: make_split([row for row in rows if row["split"] == part], vector) for part in PARTS}


def make_split(rows: list[dict], vector: dict[str, Tensor]) -> Split:
    """The tensors of one split's rows."""
    emoji = list({row["label"]: row for row in rows}.values())
    place = {row["label"]: number for number, row in enumerate(emoji)}
    words = sorted({word for row in emoji for word in row["keywords"]})
    finds = torch.tensor([[word in row["keywords"] for row in emoji] for word in words])
    return Split(
        torch.stack([vector[row["name"]] for row in emoji]),
        torch.stack([vector[word] for word in words]),
        finds,
        torch.stack([image_tensor(row["image"], SIZE) for row in rows]),
        torch.tensor([place[row["label"]] for row in rows]),
        torch.stack([torch.stack([vector[text] for text in row["captions"]]) for row in emoji]),
    )


def train_encoder(train: Split, validation: Split, epochs: int) -> DrawingEncoder:
    """The encoder of the epoch that finds most of the validation drawings' names."""
    encoder, loss = DrawingEncoder(train.names.shape[1]), InfoNCE()
    encoder.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *loss.parameters()], lr=1e-3, weight_decay=1e-2)
    steps = epochs * -(-len(train.drawn) // 128)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    best, kept, cosine = -1.0, encoder, FixedCosine(train.names.shape[1])
    for _ in tqdm(range(epochs), desc="encoder", unit="epoch"):
        encoder.train()
        for rows in torch.randperm(len(train.drawn)).split(128):
            pixels = nn.functional.pad(train.pixels[rows].float() / 255, (3, 3, 3, 3), value=1.0)
            dx, dy = torch.randint(0, 7, (2,)).tolist()
            features = encoder(pixels[:, :, dy : dy + SIZE, dx : dx + SIZE])
            drawn = train.drawn[rows]
            captions = train.captions[drawn, torch.randint(0, 2, (len(rows),))]
            scores = cosine(features, captions)
            step(loss(scores, drawn[:, None] == drawn), optimizer)
            schedule.step()
        encode(encoder, validation)
        score = mean_reciprocal(None, validation)["drawings"]
        if score > best:
            best, kept = score, copy.deepcopy(encoder)
    return kept.eval()


@torch.no_grad()
def encode(encoder: DrawingEncoder, split: Split) -> None:
    """Give a split the features of its drawings."""
    encoder.eval()
    split.drawings = torch.cat([encoder(part.float() / 255) for part in split.pixels.split(256)])


def train_metric(train: Split, validation: Split, epochs: int) -> GSSFMetric:
    """The metric of the epoch with the best mean reciprocal rank on validation words and drawings."""
    metric, loss = GSSFMetric(train.names.shape[1], block_size=BLOCK), InfoNCE()
    optimizer = torch.optim.AdamW([*metric.parameters(), *loss.parameters()], lr=1e-3, weight_decay=0.0)
    best, kept = sum(mean_reciprocal(metric, validation).values()), copy.deepcopy(metric)
    for _ in tqdm(range(epochs), desc="metric", unit="epoch"):
        for queries, names, positive in batches(train):
            step(loss(metric(queries, names), positive), optimizer)
        score = sum(mean_reciprocal(metric, validation).values())
        if score > best:
            best, kept = score, copy.deepcopy(metric)
    return kept.eval()


def batches(data: Split, size: int = 256) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Every (keyword, emoji) pair and every drawing once, in batches of one kind in random order."""
    made = []
    for queries, finds in data.queries().values():
        pairs = finds.nonzero()
        for rows in pairs[torch.randperm(len(pairs))].split(size):
            query, emoji = rows.T
            made.append((queries[query], data.names[emoji], finds[query][:, emoji]))
    for number in torch.randperm(len(made)).tolist():
        yield made[number]


def step(value: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """One step of the optimizer."""
    optimizer.zero_grad()
    value.backward()
    optimizer.step()


def measure(metric: GSSFMetric | None, split: Split) -> dict[str, dict[str, float]]:
    """Under a metric, or cosine (None), for each kind of query R@1, R@10 and MRR of the first right emoji, in %."""
    measured = {}
    for kind, (queries, finds) in split.queries().items():
        order = topk(metric, queries, split.names, len(split.names)).indices
        rank = finds.gather(1, order).int().argmax(1) + 1
        measured[kind] = {f"R@{k}": 100 * (rank <= k).float().mean().item() for k in (1, 10)}
        measured[kind]["MRR"] = 100 * (1 / rank).mean().item()
    return measured


def mean_reciprocal(metric: GSSFMetric | None, split: Split) -> dict[str, float]:
    """The MRR of `measure` for each kind of query."""
    return {kind: values["MRR"] for kind, values in measure(metric, split).items()}


def render(similarities: dict[str, GSSFMetric | None], split: Split) -> str:
    """A Markdown table."""
    lines = ["| query | similarity | R@1 | R@10 | MRR |", "|---|---|---:|---:|---:|"]
    for kind in split.queries():
        for name, metric in similarities.items():
            values = measure(metric, split)[kind]
            lines.append(f"| {kind} | {name} | " + " | ".join(f"{value:.1f}" for value in values.values()) + " |")
    return "\n".join(lines) + "\n"


def facts(metric: GSSFMetric, split: Split, model: str) -> CardFacts:
    """What the model card says."""
    return {
        "data": "Keywords and drawings of the training emoji in `examples/data/emoji`, to find their names: MiniLM "
        "embeddings, and drawings encoded into MiniLM's space. Made by `examples/train_search_demo.py`.",
        "measures": {f"{kind} MRR": round(value, 1) for kind, value in mean_reciprocal(metric, split).items()},
        "evaluated_on": "Emoji never trained on",
        "license": "apache-2.0",
        "base_model": "sentence-transformers/all-MiniLM-L6-v2" if model == PACKAGED else model,
    }


def parse_options() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=FOLDER)
    parser.add_argument("--model", default=PACKAGED, help="Hub id or folder of the text encoder")
    parser.add_argument("--epochs", type=int, default=12, help="of the encoder, and of the metric")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="every sixteenth emoji, three epochs")
    options = parser.parse_args()
    options.every = 16 if options.quick else 1
    options.epochs = 3 if options.quick else options.epochs
    return options


def main() -> None:
    """Train both, measure once on test, save."""
    options = parse_options()
    torch.manual_seed(options.seed)
    splits = load_splits(options.model, options.every)
    encoder = train_encoder(splits["train"], splits["validation"], options.epochs)
    for split in splits.values():
        encode(encoder, split)
    metric = train_metric(splits["train"], splits["validation"], options.epochs)
    table = render({"cosine": None, f"GSSF both, block {BLOCK}": metric}, splits["test"])
    print(table)
    options.output.mkdir(parents=True, exist_ok=True)
    encoder.save(options.output / "image_encoder.safetensors")
    metric.save_pretrained(options.output / "metric", model_card_kwargs=facts(metric, splits["test"], options.model))
    (options.output / "table.md").write_text(table)


if __name__ == "__main__":
    main()
