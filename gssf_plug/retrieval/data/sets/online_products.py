"""Stanford Online Products: two lists, of which the classes do not overlap.

<root>/Ebay_train.txt               image_id class_id super_class_id path
                                    1 1 1 bicycle_final/111085122871_0.JPG
<root>/Ebay_test.txt                of other classes
<root>/bicycle_final/111085122871_0.JPG
"""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gssf_plug.errors import DataError
from gssf_plug.retrieval.data.source_files import OfficialSplit, StrPath, find_part, read_lines, require_files

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["online_products"]

OFFICIAL = {"train": 59_551, "test": 60_502}
HEADER = "image_id class_id super_class_id path"


def online_products(root: StrPath, split: Literal["train", "test"]) -> "Dataset":
    """Stanford Online Products: 11,318 classes with 59,551 images to train on, 11,316 others with 60,502 to test on.

    Args:
        root: the unpacked `Stanford_Online_Products`, or the folder that holds it.
        split: "train" or "test".

    Returns:
        Rows with the columns image and label, which is numbered from 0 in "train", and is the class number of the list
        in "test".

    Raises:
        ArgumentError: there is no such split.
        DataError: a part of the data set is missing or damaged.
    """
    opened = OfficialSplit("Stanford Online Products", root, split, OFFICIAL)
    name = f"Ebay_{split}.txt"
    path = find_part(opened.folder, name, f"Stanford_Online_Products/{name}", what=f"the list of '{split}'")
    entries = _entries(path)
    files = require_files(path.parent, [file for file, _ in entries], listed_in=f"'{name}'")
    return opened.rows(files, [number for _, number in entries], renumber=split == "train")


def _entries(path: Path) -> list[tuple[str, int]]:
    """File and class of every line after the header."""
    header, *lines = read_lines(path)
    if header.split() != HEADER.split():
        raise DataError(path, f"begins with {header!r}, expected '{HEADER}'", "Download it again.")
    entries = []
    for number, line in enumerate(lines, start=2):
        parts = line.split()
        if len(parts) != 4 or not parts[1].isdecimal():
            raise DataError(path, f"has the line {number} {line!r}, expected '{HEADER}'", "Download it again.")
        entries.append((parts[3], int(parts[1])))
    return entries
