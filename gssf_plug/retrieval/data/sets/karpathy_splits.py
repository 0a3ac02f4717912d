"""Flickr30K and MS-COCO: Karpathy's JSON files of captions and splits, beside the images.

    <root>/dataset_flickr30k.json                          <root>/dataset_coco.json
    <root>/flickr30k-images/1000092795.jpg                 <root>/train2014/COCO_train2014_000000000009.jpg
                                                           <root>/val2014/COCO_val2014_000000391895.jpg

One row per image, `label` its number in the file (`imgid`), `captions` its first five captions as in VSE++ and its
descendants (some COCO images have six or seven). COCO's "restval", the rest of val2014, belongs to "train" by default,
as in the literature since VSE++.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gssf_plug.arguments import checked_count, checked_flag
from gssf_plug.errors import DataError
from gssf_plug.retrieval.data.source_files import OfficialSplit, StrPath, existing_folder, find_part, require_files

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["coco", "flickr30k"]

FLICKR30K = {"train": 29_000, "val": 1_014, "test": 1_000}
COCO = {"train": 113_287, "val": 5_000, "test": 5_000}
Split = Literal["train", "val", "test"]


def flickr30k(
    root: StrPath, split: Split, *, images: StrPath | None = None, captions_per_image: int | None = 5
) -> "Dataset":
    """Flickr30K: 29,000 / 1,014 / 1,000 images with five captions each.

    Args:
        root: folder with `dataset_flickr30k.json` and the images.
        split: "train", "val" or "test".
        images: folder of the images; None (default) looks for `flickr30k-images`, `flickr30k_images` or `images` in
            `root`.
        captions_per_image: number of captions of each image to keep, from the first; default 5. None keeps all.

    Returns:
        Rows with the columns image, captions and label.

    Raises:
        ArgumentError: there is no such split, or fewer than one caption is asked for.
        DataError: a part of the data set is missing or damaged.
    """
    captions_per_image = checked_captions(captions_per_image)
    opened = OfficialSplit("Flickr30K", root, split, FLICKR30K)
    folder = opened.folder
    annotations = find_part(folder, "dataset_flickr30k.json", "annotations/dataset_flickr30k.json", what="the captions")
    places = ("flickr30k-images", "flickr30k_images", "images")
    pictures = find_part(folder, *places, what="the images") if images is None else existing_folder(images, "images")
    chosen = _read(annotations, {split})
    captions = _captions(annotations, chosen, captions_per_image)
    files = require_files(pictures, [entry["filename"] for entry in chosen], listed_in=f"'{annotations.name}'")
    return opened.rows(files, [entry["imgid"] for entry in chosen], captions=captions)


def coco(
    root: StrPath,
    split: Split,
    *,
    restval: bool = True,
    images: StrPath | None = None,
    captions_per_image: int | None = 5,
) -> "Dataset":
    """MS-COCO 2014 in Karpathy's splits: 113,287 / 5,000 / 5,000 images.

    Args:
        root: folder with `dataset_coco.json` and the images.
        split: "train", "val" or "test" (the 5K test; 1K is its mean over five folds).
        restval: True (default) adds "restval" to "train"; without it "train" has 82,783 images.
        images: folder of `train2014` and `val2014`; None (default) looks in `root`, and in `images` in it.
        captions_per_image: number of captions of each image to keep, from the first; default 5. None keeps all.

    Returns:
        Rows with the columns image, captions and label.

    Raises:
        ArgumentError: there is no such split, or fewer than one caption is asked for.
        DataError: a part of the data set is missing or damaged.
    """
    restval, captions_per_image = checked_flag("restval", restval), checked_captions(captions_per_image)
    opened = OfficialSplit("MS-COCO", root, split, COCO if restval else {**COCO, "train": 82_783})
    folder = opened.folder
    annotations = find_part(folder, "dataset_coco.json", "annotations/dataset_coco.json", what="the captions")
    if images is None:
        pictures = find_part(folder, "val2014", "images/val2014", what="the images").parent
    else:
        pictures = existing_folder(images, "images")
    chosen = _read(annotations, {"train", "restval"} if split == "train" and restval else {split})
    names = [f"{entry['filepath']}/{entry['filename']}" for entry in chosen]
    captions = _captions(annotations, chosen, captions_per_image)
    files = require_files(pictures, names, listed_in=f"'{annotations.name}'")
    return opened.rows(files, [entry["imgid"] for entry in chosen], captions=captions)


def checked_captions(count: int | None) -> int | None:
    """None, or at least one caption of each image.

    Raises:
        ArgumentError: the value is below 1 or no whole number.
    """
    if count is None:
        return None
    return checked_count("captions_per_image", count, "The field uses 5.", rule="be at least 1, or None")


def _read(path: Path, splits: set[str]) -> list[dict[str, Any]]:
    """The images of some splits, in the order of the file."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))["images"]
        chosen = [entry for entry in entries if entry["split"] in splits]
    except (ValueError, KeyError, TypeError) as error:
        problem = f"is no Karpathy file ({type(error).__name__}: {error})"
        raise DataError(path, problem, "Download caption_datasets.zip again and unpack it.") from error
    if not chosen:
        raise DataError(path, f"has no image of split {sorted(splits)}", "Use the file of Karpathy's splits.")
    return chosen


def _captions(path: Path, entries: list[dict[str, Any]], most: int | None) -> list[list[str]]:
    captions = [[sentence["raw"].strip() for sentence in entry["sentences"][:most]] for entry in entries]
    for entry, own in zip(entries, captions, strict=True):
        if not own:
            raise DataError(path, f"has no caption for image '{entry['filename']}'", "Download the file again.")
    return captions
