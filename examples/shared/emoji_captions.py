"""The emoji data as image–text pairs in memory: 32×32 pixels, and frozen text features of each emoji's captions."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from data.emoji import load_emoji
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from gssf_plug import GSSFMetric
from gssf_plug.evaluation import image_text_recall
from gssf_plug.retrieval import Embedding
from gssf_plug.retrieval.data.images import image_tensor
from shared.pretrained import embed_texts

SIZE = 32


class EmojiCaptions:
    """One split in memory: pixels, and the features of each emoji's captions."""

    def __init__(self, split: str, every: int) -> None:
        rows = load_emoji(split)
        rows = rows.select([row for row, label in enumerate(rows["label"][:]) if label % every == 0])
        images = tqdm(rows["image"], desc=f"reading {split} images", total=len(rows))
        self.images = torch.stack([image_tensor(image, SIZE) for image in images])
        self.labels = torch.tensor(rows["label"][:])
        self.vendors = rows["vendor"][:]
        self.captions = rows["captions"][:]
        self.texts = torch.empty(0)

    def embed(self, features: dict[str, Tensor]) -> None:
        """Give every caption its features."""
        self.texts = torch.stack([torch.stack([features[text] for text in texts]) for texts in self.captions])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"row": row, "image": self.images[row], "texts": self.texts[row], "label": int(self.labels[row])}


def train_batch(rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """One caption per drawing, at random; pixels shifted by up to two. Drawings of one emoji share their positives."""
    images = nn.functional.pad(_pixels(rows), (2, 2, 2, 2), value=1.0)
    dx, dy = torch.randint(0, 5, (2,)).tolist()
    chosen = torch.randint(0, 2, (len(rows),)).tolist()
    labels = torch.tensor([row["label"] for row in rows])
    texts = torch.stack([row["texts"][caption] for row, caption in zip(rows, chosen, strict=True)])
    images = images[:, :, dy : dy + SIZE, dx : dx + SIZE].contiguous(memory_format=torch.channels_last)
    return {"images": images, "image_ids": labels, "texts": texts, "text_ids": labels}


def eval_batch(rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Each drawing with all of its captions; ids are rows, so that vendors can be told apart."""
    ids = torch.tensor([row["row"] for row in rows])
    texts = torch.stack([row["texts"] for row in rows])
    return {
        "images": _pixels(rows),
        "image_ids": ids,
        "texts": texts.flatten(0, 1),
        "text_ids": ids.repeat_interleave(texts.shape[1]),
    }


def _pixels(rows: Sequence[dict[str, Any]]) -> Tensor:
    return torch.stack([row["image"] for row in rows]).float().div(255).contiguous(memory_format=torch.channels_last)


def measure_by_vendor(split: EmojiCaptions) -> Callable[[Embedding, GSSFMetric | None], dict[str, float]]:
    """An evaluation: `image_text_recall` on the drawings of each vendor, and the mean over vendors."""
    names = sorted(set(split.vendors))
    vendor = torch.tensor([names.index(name) for name in split.vendors])

    def evaluation(embedding: Embedding, metric: GSSFMetric | None) -> dict[str, float]:
        measured = []
        for number in range(len(names)):
            images = (vendor[embedding.query_ids] == number).nonzero()[:, 0]
            texts = (vendor[embedding.gallery_ids] == number).nonzero()[:, 0]
            owner = torch.searchsorted(embedding.query_ids[images], embedding.gallery_ids[texts])
            measured.append(
                image_text_recall(embedding.queries[images], embedding.gallery[texts], owner, metric=metric)
            )
        return {key: mean(values[key] for values in measured) for key in measured[0]}

    return evaluation


def load_data(cache: Path, model: str, every: int) -> dict[str, EmojiCaptions]:
    """Pixels of all splits, and text features, which are kept in a file in `cache` for the next time."""
    data = {split: EmojiCaptions(split, every) for split in ("train", "validation", "test")}
    texts = sorted({text for split in data.values() for captions in split.captions for text in captions})
    digest = hashlib.sha256("\n".join([model, *texts]).encode()).hexdigest()[:12]
    path = cache / f"text-features-{digest}.safetensors"
    if not path.exists():
        save_file({"features": embed_texts(texts, model)}, path)
    features = dict(zip(texts, load_file(path)["features"], strict=True))
    for split in data.values():
        split.embed(features)
    return data
