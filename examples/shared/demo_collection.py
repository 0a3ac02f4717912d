"""What `search_demo.py` searches: items with features, encoders for queries, and both rankings of one query."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from data.emoji import load_emoji
from datasets import Image as ImageColumn
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModel, AutoProcessor

from gssf_plug import GSSFMetric
from gssf_plug.features import mean_pool
from gssf_plug.metric import block_contributions, topk
from gssf_plug.retrieval.data.images import open_image
from shared.drawing_encoder import DrawingEncoder
from shared.pretrained import PACKAGED, embed_texts, load_text_encoder

__all__ = ["BUNDLED", "Collection", "Encoder", "Hit", "bundled_collection", "load_encoder", "own_collection", "search"]

BUNDLED = Path(__file__).resolve().parents[1] / "data" / "search_demo"


@dataclass(frozen=True)
class Collection:
    """M items: features (M, D), a label for each, and a picture (encoded bytes) or None."""

    features: Tensor
    labels: Sequence[str]
    pictures: Sequence[bytes | None]


@dataclass(frozen=True)
class Encoder:
    """Functions from a query to features (1, D); None where this kind of query has no encoder."""

    words: Callable[[str], Tensor]
    image: Callable[[Image.Image], Tensor] | None = None


@dataclass(frozen=True)
class Hit:
    """A found item: its row and score, and the blocks of channels that add most, (block, its part, cosine's part)."""

    item: int
    score: float
    blocks: list[tuple[int, float, float]]


@torch.inference_mode()
def search(metric: GSSFMetric, query: Tensor, collection: Collection, k: int = 8) -> dict[str, list[Hit]]:
    """The k best items for a query (1, D), under cosine and under the metric."""
    cosine = neutral(metric)
    return {
        "cosine": _hits(cosine, cosine, query, collection, k),
        "GSSF": _hits(metric, cosine, query, collection, k),
    }


def neutral(metric: GSSFMetric) -> GSSFMetric:
    """Cosine, with the blocks of `metric`."""
    size = metric.blocks().shape[-1]
    return GSSFMetric(metric.dim, terms=("block_diagonal",), block_size=size, grouping=metric.grouping).eval()


def _hits(metric: GSSFMetric, cosine: GSSFMetric, query: Tensor, collection: Collection, k: int) -> list[Hit]:
    found = topk(metric, query, collection.features, min(k, len(collection.labels)))
    hits = []
    for score, item in zip(found.scores[0].tolist(), found.indices[0].tolist(), strict=True):
        pair = query[0], collection.features[item]
        parts, plain = block_contributions(metric, *pair), block_contributions(cosine, *pair)
        most = parts.abs().topk(min(3, len(parts))).indices.tolist()
        hits.append(Hit(item, score, [(block, parts[block].item(), plain[block].item()) for block in most]))
    return hits


def bundled_collection(every: int = 1) -> Collection:
    """One drawing of every n-th bundled emoji, found by its name; names of emoji never trained on end in a star."""
    rows = load_emoji().cast_column("image", ImageColumn(decode=False))
    rows = {row["label"]: row for row in reversed(list(rows)) if row["label"] % every == 0}  # the first vendor stays
    emoji = [rows[label] for label in sorted(rows)]
    labels = [row["name"] + ("" if row["split"] == "train" else " *") for row in emoji]
    return Collection(embed_texts([row["name"] for row in emoji]), labels, [row["image"]["bytes"] for row in emoji])


def own_collection(features: Path, labels: Path, dim: int) -> Collection:
    """The user's own: the one tensor (M, D) of a safetensors file, and a label per line.

    A line that names an image file, from where the labels lie, shows that image.

    Raises:
        ValueError: not one matrix of the metric's width, or another number of lines.
    """
    tensors = load_file(features)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    matrix = next(iter(tensors.values())) if len(tensors) == 1 else torch.empty(0)
    if matrix.ndim != 2 or matrix.shape[1] != dim:
        raise ValueError(
            f"--features must hold one tensor of M rows and {dim} columns, the metric's width; got {shapes}."
        )
    lines = labels.read_text(encoding="utf-8").splitlines()
    if len(lines) != len(matrix):
        raise ValueError(f"--labels must have a line per row of --features, {len(matrix)}; got {len(lines)} lines.")
    return Collection(matrix.float(), lines, [_picture(labels.parent / line) for line in lines])


def _picture(path: Path) -> bytes | None:
    shown = path.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp", ".gif") and path.is_file()
    return path.read_bytes() if shown else None


def load_encoder(name: str = PACKAGED) -> Encoder:
    """MiniLM with the bundled encoder of drawings (default), a text encoder, or one of both (CLIP, SigLIP).

    Args:
        name: a Hub id, a folder, or "packaged-minilm".
    """
    drawings = DrawingEncoder.load(BUNDLED / "image_encoder.safetensors").embed if name == PACKAGED else None
    model = None if name == PACKAGED else AutoModel.from_pretrained(name).eval()
    if hasattr(model, "get_image_features"):
        return _dual_encoder(model, AutoProcessor.from_pretrained(name))
    tokenizer, encoder = load_text_encoder(name)

    def words(text: str) -> Tensor:
        batch = tokenizer([text], truncation=True, return_tensors="pt")
        return mean_pool(encoder(**batch).last_hidden_state, batch["attention_mask"])

    return Encoder(torch.inference_mode()(words), drawings)


def _dual_encoder(model: Any, processor: Any) -> Encoder:
    def words(text: str) -> Tensor:
        batch = processor(text=[text], padding=True, truncation=True, return_tensors="pt")
        return _vector(model.get_text_features(**batch))

    def image(picture: Image.Image) -> Tensor:
        return _vector(model.get_image_features(**processor(images=[open_image(picture)], return_tensors="pt")))

    return Encoder(torch.inference_mode()(words), torch.inference_mode()(image))


def _vector(output: Any) -> Tensor:
    vector: Tensor = getattr(output, "pooler_output", output)
    return vector
