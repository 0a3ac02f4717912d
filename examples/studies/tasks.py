"""The retrieval tasks of the studies on the bundled emoji data: three splits, no emoji in two of them.

    text            keyword → emoji name, MiniLM on both sides (384 wide)
    image-text      drawing → caption, MobileNetV2 (1280) and MiniLM (384); only with trained heads, which share a width
    re-id           drawing → the same emoji by another vendor; drawings by the query's own vendor are taken out
    fine-grained    drawing → the same emoji, itself taken out; five vendors, measured on classes never trained on

Drawings come as frozen features, or as 16×16 pixels where an encoder is trained from scratch. Both are computed once,
into --cache (five minutes), and every study reads them from there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from pathlib import Path

import torch
from data.emoji import SPLITS, VENDORS, load_emoji
from safetensors.torch import load_file, save_file
from shared.pretrained import embed_images, embed_texts
from torch import Tensor

from gssf_plug.retrieval.data.images import image_tensor

__all__ = ["PIXELS", "TASKS", "Split", "Task", "average_precision", "load_task"]

PIXELS = 16  # width and height of a drawing for an encoder from scratch


@dataclass(frozen=True)
class Split:
    """Queries N, gallery M, what belongs together, and what is taken out of a ranking; a drawing may be pixels."""

    queries: Tensor  # (N, D) or (N, 3, PIXELS, PIXELS)
    gallery: Tensor  # (M, E) or (M, 3, PIXELS, PIXELS)
    relevant: Tensor  # (N, M) boolean
    hidden: Tensor  # (N, M) boolean

    @cached_property
    def positive(self) -> Tensor:
        """(N, M), what counts as found."""
        return self.relevant & ~self.hidden

    @cached_property
    def pairs(self) -> Tensor:
        """(P, 2), query and gallery item of every positive."""
        return self.positive.nonzero()


@dataclass(frozen=True)
class Task:
    """One task, and whether both sides are one kind of item (then a metric is symmetric)."""

    name: str
    one_sided: bool
    splits: dict[str, Split]


@lru_cache(maxsize=4)
def load_task(name: str, folder: Path, *, pixels: bool = False) -> Task:
    """The task with its features, or with the pixels of its drawings; computes and keeps them at the first call."""
    drawings = _pixels(folder) if pixels else _image_features(folder)
    splits = {split: TASKS[name](split, folder, drawings) for split in SPLITS}
    return Task(name, name in ("re-id", "fine-grained"), splits)


def average_precision(scores: Tensor, split: Split) -> Tensor:
    """AP of each query that has a positive, in %: the mean over its positives of i / rank_i; ties come first."""
    queries, items = split.pairs.T
    kept = scores.masked_fill(split.hidden, float("-inf"))
    ranks = (kept[queries] >= kept[queries, items][:, None]).sum(1)
    ranks = ranks[(queries * (scores.shape[1] + 1) + ranks).argsort()]  # the pairs of one query, best first
    count = queries.bincount(minlength=len(scores))
    place = torch.arange(1, len(queries) + 1) - (count.cumsum(0) - count)[queries]
    return 100 * (torch.zeros(len(scores)).index_add(0, queries, place / ranks) / count)[count > 0]


Drawings = dict[str, Tensor]  # of each split


def _text(split: str, folder: Path, _: Drawings) -> Split:
    emoji = _emoji(split)
    vectors = _text_features(folder)
    keywords = sorted({keyword for row in emoji for keyword in row["keywords"]})
    position = {keyword: number for number, keyword in enumerate(keywords)}
    relevant = torch.zeros(len(keywords), len(emoji), dtype=torch.bool)
    for column, row in enumerate(emoji):
        relevant[[position[keyword] for keyword in row["keywords"]], column] = True
    queries = torch.stack([vectors[keyword] for keyword in keywords])
    gallery = torch.stack([vectors[row["name"]] for row in emoji])
    return Split(queries, gallery, relevant, torch.zeros_like(relevant))


def _image_text(split: str, folder: Path, drawings: Drawings) -> Split:
    rows, images = _drawn(split, drawings)
    vectors = _text_features(folder)
    captions = sorted({(row["label"], row["captions"][0]) for row in _emoji(split)})
    labels, texts = torch.tensor([label for label, _ in captions]), [vectors[text] for _, text in captions]
    relevant = rows["label"][:, None] == labels
    return Split(images, torch.stack(texts), relevant, torch.zeros_like(relevant))


def _re_id(split: str, folder: Path, drawings: Drawings) -> Split:
    rows, images = _drawn(split, drawings)
    same, camera = (rows[name][:, None] == rows[name] for name in ("label", "camera"))
    return Split(images, images, same & ~camera, same & camera)


def _fine_grained(split: str, folder: Path, drawings: Drawings) -> Split:
    rows, images = _drawn(split, drawings, [vendor for vendor in VENDORS if vendor != "fluent-flat"])
    same, itself = rows["label"][:, None] == rows["label"], torch.eye(len(images), dtype=torch.bool)
    return Split(images, images, same & ~itself, itself)


TASKS: dict[str, Callable[[str, Path, Drawings], Split]] = {
    "text": _text,
    "image-text": _image_text,
    "re-id": _re_id,
    "fine-grained": _fine_grained,
}


@cache
def _emoji(split: str) -> list[dict]:
    """One row per emoji, whatever its vendors."""
    rows = load_emoji(split).select_columns(["label", "name", "keywords", "captions"]).to_list()
    return list({row["label"]: row for row in rows}.values())


def _drawn(
    split: str, drawings: dict[str, Tensor], vendors: list[str] | None = None
) -> tuple[dict[str, Tensor], Tensor]:
    rows = load_emoji(split).select_columns(["vendor", "label", "camera"]).to_dict()
    kept = torch.tensor([vendor in (vendors or VENDORS) for vendor in rows["vendor"]])
    columns = {name: torch.tensor(rows[name])[kept] for name in ("label", "camera")}
    return columns, drawings[split][kept].float()


def _image_features(folder: Path) -> dict[str, Tensor]:
    path = folder / "images.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({split: embed_images(list(load_emoji(split)["image"])).half() for split in SPLITS}, path)
    return load_file(path)


def _pixels(folder: Path) -> dict[str, Tensor]:
    """Pixels between 0 and 1."""
    path = folder / f"pixels{PIXELS}.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn = {
            split: torch.stack([image_tensor(image, PIXELS) for image in load_emoji(split)["image"]])
            for split in SPLITS
        }
        save_file(drawn, path)
    return {split: pixels.float() / 255 for split, pixels in load_file(path).items()}


def _text_features(folder: Path) -> dict[str, Tensor]:
    rows = [row for split in SPLITS for row in _emoji(split)]
    texts = sorted({text for row in rows for text in (row["name"], *row["keywords"], *row["captions"])})
    path = folder / "texts.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"texts": embed_texts(texts)}, path)
    return dict(zip(texts, load_file(path)["texts"], strict=True))
