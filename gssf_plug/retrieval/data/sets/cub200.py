"""CUB-200-2011 in the class split of metric learning: the first half of the classes trains, the second tests.

    <root>/classes.txt                  1 001.Black_footed_Albatross
    <root>/images.txt                   1 001.Black_footed_Albatross/Black_Footed_Albatross_0046_18.jpg
    <root>/image_class_labels.txt       1 1
    <root>/images/001.Black_footed_Albatross/Black_Footed_Albatross_0046_18.jpg

`train_test_split.txt` is the split of classification, inside classes, and is not read.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gssf_plug.errors import DataError
from gssf_plug.retrieval.data.source_files import OfficialSplit, StrPath, find_part, read_lines, require_files

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["cub200"]

OFFICIAL = {"train": 5_864, "test": 5_924}


def cub200(root: StrPath, split: Literal["train", "test"]) -> "Dataset":
    """CUB-200-2011: 100 classes with 5,864 images to train on, 100 others with 5,924 to test on.

    Args:
        root: the unpacked `CUB_200_2011`, or the folder that holds it.
        split: "train" or "test".

    Returns:
        Rows with the columns image and label; labels are 0 … 99 in "train", 100 … 199 in "test".

    Raises:
        ArgumentError: there is no such split.
        DataError: a part of the data set is missing or damaged.
    """
    opened = OfficialSplit("CUB-200-2011", root, split, OFFICIAL)
    folder = find_part(opened.folder, "images.txt", "CUB_200_2011/images.txt", what="the list of images").parent
    names = _numbered_lines(folder, "images.txt")
    classes = _numbered_lines(folder, "image_class_labels.txt")
    half = len(_numbered_lines(folder, "classes.txt")) // 2
    if names.keys() != classes.keys():
        problem = f"names the classes of {len(classes):,} images, but 'images.txt' has {len(names):,}, not the same"
        raise DataError(folder / "image_class_labels.txt", problem, "Download the data set again.")
    labels = {image: int(number) - 1 for image, number in classes.items()}
    chosen = [image for image in names if (labels[image] < half) == (split == "train")]
    pictures = find_part(folder, "images", what="the images")
    files = require_files(pictures, [names[image] for image in chosen], listed_in="'images.txt'")
    return opened.rows(files, [labels[image] for image in chosen])


def _numbered_lines(folder: Path, name: str) -> dict[int, str]:
    """Lines `number value` as a dict."""
    path = find_part(folder, name, what="an annotation file")
    values = {}
    for line in read_lines(path):
        number, _, value = line.partition(" ")
        if not number.isdecimal() or not value:
            raise DataError(path, f"has the line {line!r}, expected a number and a value", "Download it again.")
        values[int(number)] = value
    return values
