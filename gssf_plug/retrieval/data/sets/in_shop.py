"""DeepFashion In-Shop Clothes Retrieval: one list, in which every image trains, asks or is found.

    <root>/Eval/list_eval_partition.txt     52712
                                            image_name item_id evaluation_status
                                            img/WOMEN/Dresses/id_00000002/02_1_front.jpg id_00000002 train
    <root>/Img/img/WOMEN/Dresses/id_00000002/02_1_front.jpg         (or <root>/img/…)

The list also stands as <root>/list_eval_partition.txt or <root>/Anno/list_eval_partition.txt.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gssf_plug.errors import DataError
from gssf_plug.retrieval.data.source_files import OfficialSplit, StrPath, find_part, read_lines, require_files

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["in_shop"]

OFFICIAL = {"train": 25_882, "query": 14_218, "gallery": 12_612}
LIST = "list_eval_partition.txt"
HEADER = ["image_name", "item_id", "evaluation_status"]


def in_shop(root: StrPath, split: Literal["train", "query", "gallery"]) -> "Dataset":
    """In-Shop: 3,997 items with 25,882 images to train on; 3,985 others with 14,218 queries in a gallery of 12,612.

    Args:
        root: folder that holds `Eval` and `Img`.
        split: "train", "query" or "gallery".

    Returns:
        Rows with the columns image and label, which is numbered from 0 in "train", and is the number of the item id in
        "query" and "gallery".

    Raises:
        ArgumentError: there is no such split.
        DataError: a part of the data set is missing or damaged.
    """
    opened = OfficialSplit("In-Shop", root, split, OFFICIAL)
    path = find_part(opened.folder, f"Eval/{LIST}", LIST, f"Anno/{LIST}", what="the list of partitions")
    entries = [(name, item) for name, item, status in _entries(path) if status == split]
    if not entries:
        raise DataError(path, f"has no image of '{split}'", "Download it again.")
    images = find_part(opened.folder, "Img/img", "img", what="the images").parent
    files = require_files(images, [name for name, _ in entries], listed_in=f"'{LIST}'")
    items = [int(item.removeprefix("id_")) for _, item in entries]
    return opened.rows(files, items, renumber=split == "train")


def _entries(path: Path) -> list[list[str]]:
    """Image, item and status of every line after the two of the header; as many as the first line says."""
    lines = read_lines(path)
    if len(lines) < 3 or not lines[0].isdecimal() or lines[1].split() != HEADER:
        problem = f"does not begin with a count and '{' '.join(HEADER)}'"
        raise DataError(path, problem, "Download it again.")
    entries = [line.split() for line in lines[2:]]
    for number, parts in enumerate(entries, start=3):
        if len(parts) != 3 or not parts[1].removeprefix("id_").isdecimal():
            problem = f"has the line {number} {lines[number - 1]!r}, expected 'image id_00000002 train'"
            raise DataError(path, problem, "Download it again.")
    if len(entries) != int(lines[0]):
        raise DataError(path, f"has {len(entries):,} images, but its first line says {lines[0]}", "Download it again.")
    return entries
