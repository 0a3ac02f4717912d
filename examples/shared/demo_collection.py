"""What `search_demo.py` searches: items with features, encoders for queries, and both rankings of one query."""

import csv
import io
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import torch
from data.emoji import load_emoji
from datasets import Image as ImageColumn
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from tqdm.auto import tqdm
from transformers import AutoModel, AutoProcessor

from gssf_plug import GSSFMetric
from gssf_plug.features import mean_pool
from gssf_plug.metric import block_contributions, topk
from gssf_plug.retrieval.data.images import UnreadableError, open_image
from gssf_plug.retrieval.data.source_files import is_hidden, is_image_name
from shared.drawing_encoder import DrawingEncoder
from shared.pretrained import PACKAGED, embed_texts, load_text_encoder

__all__ = [
    "BUNDLED", "Collection", "Encoder", "Hit", "bundled_collection", "load_encoder", "own_collection",
    "pictures_collection", "search",
]  # fmt: skip

logger = logging.getLogger(__name__)

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
    """A found item: row, score, the blocks that add most, (block, its part, cosine's part), and a reason in words."""

    item: int
    score: float
    blocks: list[tuple[int, float, float]]
    reason: str = ""


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
    everywhere = block_contributions(cosine, query, collection.features)  # (M, blocks): what each block is about
    hits = []
    for score, item in zip(found.scores[0].tolist(), found.indices[0].tolist(), strict=True):
        pair = query[0], collection.features[item]
        parts, plain = block_contributions(metric, *pair), block_contributions(cosine, *pair)
        most = parts.abs().topk(min(3, len(parts))).indices.tolist()
        changed = cause(parts - plain)
        near = everywhere[:, changed].topk(min(3, len(everywhere))).indices.tolist()
        names = [collection.labels[row].removesuffix(" *") for row in near if row != item][:2]
        reason = in_words(parts[changed].item(), plain[changed].item(), names)
        hits.append(Hit(item, score, [(block, parts[block].item(), plain[block].item()) for block in most], reason))
    return hits


def cause(change: Tensor) -> int:
    """The block that did most for the way in which the whole score went: up by an increase, down by a decrease."""
    return int((change if change.sum() >= 0 else -change).argmax())


def in_words(part: float, plain: float, names: Sequence[str]) -> str:
    """Why an item's score differs from cosine: the block of `cause`, and what is nearest to the query in it.

    Args:
        part: what the block adds under the metric.
        plain: what it adds under cosine.
        names: labels of the items that agree most with the query in this block.
    """
    if abs(part - plain) < 5e-4:
        return "weighed as cosine does"
    shared = " and ".join(f"“{shorten(name, 32, placeholder='…')}”" for name in names)
    where = f"what the query shares with {shared}" if shared else "one group of channels"
    relation = "differs" if plain < 0 else "matches"
    if part * plain < 0:
        return f"{relation} in {where}, which now counts {'for' if part > 0 else 'against'} it"
    return f"{relation} in {where}, weighed {'more' if abs(part) > abs(plain) else 'less'}"


def bundled_collection(every: int = 1) -> Collection:
    """One drawing of every n-th bundled emoji, found by its name; names of emoji never trained on end in a star."""
    rows = load_emoji().cast_column("image", ImageColumn(decode=False))
    rows = rows.select([row for row, label in enumerate(rows["label"][:]) if label % every == 0]).to_list()
    rows = {row["label"]: row for row in reversed(rows)}  # the first vendor stays
    emoji = [rows[label] for label in sorted(rows)]
    labels = [row["name"] + ("" if row["split"] == "train" else " *") for row in emoji]
    return Collection(embed_texts([row["name"] for row in emoji]), labels, [row["image"]["bytes"] for row in emoji])


def own_collection(features: Path, labels: Path, dim: int) -> Collection:
    """The user's own: an array (M, D) in a .npy file, or the one tensor of a safetensors file, and a label per row.

    Labels are lines of a text file, or of a .csv file with a header the column "label", or else its first column. A
    label that names an image file, from where the labels lie, shows that image and its name without the ending; a
    column "image" of a table shows its images beside the labels.

    Raises:
        ValueError: not one matrix of the metric's width, or another number of lines.
    """
    if features.suffix == ".npy":
        tensors = {"array": torch.from_numpy(np.load(features).astype(np.float32))}
    else:
        tensors = load_file(features)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    matrix = next(iter(tensors.values())) if len(tensors) == 1 else torch.empty(0)
    if matrix.ndim != 2 or matrix.shape[1] != dim:
        raise ValueError(
            f"--features must hold one tensor of M rows and {dim} columns, the metric's width; got {shapes}."
        )
    lines, images = _labels(labels)
    if len(lines) != len(matrix):
        raise ValueError(f"--labels must have a line per row of --features, {len(matrix)}; got {len(lines)} lines.")
    pictures = [_picture(labels.parent / image) for image in images]
    shown = [
        readable(Path(line)) if line == image and picture else line
        for line, image, picture in zip(lines, images, pictures, strict=True)
    ]
    return Collection(matrix.float(), shown, pictures)


def pictures_collection(folder: Path, encoder: Encoder, dim: int) -> Collection:
    """Every image below a folder, embedded under a progress bar; its label is its path as a reader would write it.

    Images that cannot be read are left out, each with a warning.

    Raises:
        ValueError: no such folder, no image in it that can be read, an encoder of words alone or of another width.
    """
    if encoder.image is None:
        raise ValueError("--images needs a --model that encodes images, such as a CLIP; this one encodes words alone.")
    files = sorted(path for path in folder.rglob("*") if is_image_name(path.name) and not _hidden(path, folder))
    features, labels, pictures = [], [], []
    for path in tqdm(files, desc="embedding images", unit="image"):
        try:
            picture = open_image(path)
        except UnreadableError as error:
            logger.warning("left out: %s", error)
            continue
        features.append(encoder.image(picture.convert("RGBA")))
        labels.append(readable(path.relative_to(folder)))
        picture.thumbnail((96, 96))
        small = io.BytesIO()
        picture.save(small, "PNG")
        pictures.append(small.getvalue())
    if not features:
        raise ValueError(f"--images: '{folder}' holds no image that can be read.")
    if features[0].shape[-1] != dim:
        raise ValueError(f"--model gives {features[0].shape[-1]} numbers for an image, and --metric takes {dim}.")
    return Collection(torch.cat(features).float(), labels, pictures)


def readable(path: Path) -> str:
    """A file's path as a label: no ending, and spaces for underscores."""
    return path.with_suffix("").as_posix().replace("_", " ")


def _hidden(path: Path, folder: Path) -> bool:
    return any(map(is_hidden, path.relative_to(folder).parts))


def _labels(path: Path) -> tuple[list[str], list[str]]:
    """A label for each row, and the file that may show it."""
    if path.suffix != ".csv":
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        return lines, lines
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        rows, columns = list(reader), list(reader.fieldnames or [])
    if not columns:
        raise ValueError(f"--labels: '{path}' is empty; a .csv file has a header, such as label,image.")
    named = "label" if "label" in columns else columns[0]
    labels = [row[named] or "" for row in rows]
    return labels, [row["image"] or "" for row in rows] if "image" in columns else labels


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
