"""Doors of what reads data: samplers, collators, transforms, data sets."""

import functools
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from torch import Tensor
from wrong_calls.door import Door, features, label_ids

from gssf_plug.retrieval import (
    IdentityBatches,
    LabelCollator,
    LengthBatches,
    PairCollator,
    ProcessorTransform,
    RandomBatches,
    WithRowNumbers,
    WordAugmentation,
)
from gssf_plug.retrieval.data import (
    CachedImages,
    cache_images,
    cars196,
    coco,
    column,
    cub200,
    cuhk03,
    flickr30k,
    image_folder,
    in_shop,
    market1501,
    msmt17,
    online_products,
    read_columns,
    region_features,
)

__all__ = ["READING", "FastTokenizer"]


class FastTokenizer:
    """As much of a tokenizer as collators ask for."""

    is_fast, mask_token_id, model_max_length = True, 1, 8

    def __len__(self) -> int:
        return 16

    def __call__(self, texts: list[str], **options: Any) -> dict[str, Tensor]:
        ids = torch.tensor([[len(text) % 16, 2, 3] for text in texts])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _image() -> Image.Image:
    return Image.fromarray(np.zeros((4, 4, 3), dtype=np.uint8))


def _pixels(image: Image.Image) -> Tensor:
    return torch.zeros(3, *image.size)


def _processor(images: Any, return_tensors: str) -> dict[str, Tensor]:
    return {"pixel_values": torch.zeros(len(images), 3, 4, 4)}


def _rows() -> list[dict[str, Any]]:
    return [{"image": _image(), "captions": ["a", "b"], "label": number} for number in range(3)]


def _vectors() -> list[dict[str, Any]]:
    return [{"features": row, "label": number} for number, row in enumerate(features())]


def _batches(made: Any) -> list[list[int]]:
    made.set_epoch(1)
    return list(made)


def vector_row(value: Any, label: Any) -> Any:
    """A batch of two rows, of which one holds these."""
    return LabelCollator()([{"features": features()[0], "label": 0}, {"features": value, "label": label}])


def captioned_row(captions: Any) -> Any:
    """A batch of two rows, of which one has these captions."""
    collate = PairCollator(FastTokenizer(), transform=_pixels)
    return collate([*_rows()[:1], {"image": _image(), "captions": captions, "label": 1}])


@functools.cache
def _picture() -> bytes:
    written = io.BytesIO()
    _image().save(written, "png")
    return written.getvalue()


def _files() -> list[dict[str, Any]]:
    return [{"image": {"path": None, "bytes": _picture()}, "label": number} for number in range(2)]


def _cached() -> dict[str, Any]:
    rows = _files()
    cache_images(rows, "whole")
    return {"rows": rows, "folder": Path("whole"), "column": "image", "transform": None}


def _classes() -> dict[str, Any]:
    for name in ("train/ant", "train/bee"):
        Path("pictures", name).mkdir(parents=True, exist_ok=True)
        Path("pictures", name, "one.png").write_bytes(_picture())
    return {"root": "pictures", "split": "train", "split_classes": 0.5, "seed": 0}


def _market() -> dict[str, Any]:
    Path("market/query").mkdir(parents=True, exist_ok=True)
    Path("market/query/0001_c1s1_001051_00.jpg").write_bytes(_picture())
    return {"root": Path("market"), "split": "query"}


def _table() -> Dataset:
    return Dataset.from_dict({"vector": features().tolist(), "text": list("abcdef"), "who": [0, 1, 2, 0, 1, 2]})


_batched = IdentityBatches(label_ids(), identities=2, images=2)
# these have no right call here: their archives are large, and the tests of each forge them
ARCHIVES = [
    (cars196, {"split": "test"}),
    (coco, {"split": "val", "restval": True, "images": None, "captions_per_image": 5}),
    (cub200, {"split": "test"}),
    (cuhk03, {"split": "query", "boxes": "detected"}),
    (flickr30k, {"split": "val", "images": None, "captions_per_image": 5}),
    (in_shop, {"split": "query"}),
    (msmt17, {"split": "query"}),
    (online_products, {"split": "test"}),
]

READING = [
    Door(RandomBatches, lambda: {"rows": 6, "batch_size": 2, "seed": 0}, check=lambda made: next(iter(made)), right=(
        ("rows", "2**70"),
    )),
    Door(
        IdentityBatches,
        lambda: {"labels": label_ids(), "identities": 2, "images": 2, "seed": 0, "resample": False, "processes": 1},
        check=_batches,
    ),
    Door(
        LengthBatches, lambda: {"lengths": label_ids(), "batch_size": 2, "pool": 2, "seed": 0}, check=_batches,
    ),
    Door(_batched.part, lambda: {"process": 0, "processes": 2}, check=_batches),
    *(Door(made.set_epoch, lambda: {"epoch": 1}) for made in (RandomBatches(6, 2), _batched, LengthBatches([1, 2], 1))),
    Door(LabelCollator, lambda: {"transform": _pixels, "ids": "label"}, check=lambda made: made(_rows())),
    Door(LabelCollator(transform=_pixels), lambda: {"rows": _rows()}),
    Door(LabelCollator(), lambda: {"rows": _vectors()}),
    Door(vector_row, lambda: {"value": features()[0], "label": 1}, nan_passes=True),
    Door(
        PairCollator,
        lambda: {
            "tokenizer": FastTokenizer(), "transform": _pixels, "captions": "one", "max_length": 8, "padding": True,
            "words": None,
        },
        check=lambda made: made(_rows()),
    ),
    Door(PairCollator(FastTokenizer(), transform=_pixels), lambda: {"rows": _rows()}),
    Door(captioned_row, lambda: {"captions": ["a"]}),
    Door(ProcessorTransform, lambda: {"processor": _processor}, check=lambda made: made(_image())),
    Door(
        WordAugmentation, lambda: {"tokenizer": FastTokenizer(), "share": 0.2}, check=lambda made: made([1], [None]),
    ),
    Door(WordAugmentation(FastTokenizer()), lambda: {"tokens": [1, 2, 3], "words": [None, 0, 1]}),
    Door(WithRowNumbers, lambda: {"rows": _vectors()}, check=lambda made: [made[row] for row in range(len(made))]),
    Door(column, lambda: {"rows": _table(), "name": "who"}),
    Door(
        functools.partial(read_columns, _table()),  # a word may be the name of a set on the Hub
        lambda: {"split": "train", "image": None, "features": "vector", "captions": "text", "label": "who",
                 "camera": "who"},
        name="read_columns",
    ),
    Door(
        cache_images,
        lambda: {
            "rows": _files(), "folder": "cache", "size": 4, "column": "image", "transform": None, "workers": 0,
            "skip_unreadable": False, "progress": False,
        },
        check=lambda made: made[0],
        right=(("workers", "a thousand times"), ("workers", "numpy integer")),
    ),
    Door(CachedImages, _cached, check=lambda made: made[0]),
    Door(image_folder, _classes),
    Door(market1501, _market),
    *(Door(read, lambda options=options: {"root": "nowhere", **options}) for read, options in ARCHIVES),
    Door(
        region_features,
        lambda: {"folder": "nowhere", "split": "dev", "captions_per_image": 5, "dev_captions": None},
    ),
]  # fmt: skip
