"""MSMT17, first and second release: lists of files with their identities; the camera stands in the file name.

<root>/list_train.txt               0000/0000_000_01_0303morning_0008_0.jpg 0
<root>/list_val.txt, <root>/list_query.txt, <root>/list_gallery.txt
<root>/train/0000/0000_000_01_0303morning_0008_0.jpg       first release; the third number is the camera, from 1
<root>/test/…                                              of query and gallery
<root>/mask_train_v2/…, <root>/mask_test_v2/…              second release, faces masked
"""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gssf_plug.errors import DataError
from gssf_plug.retrieval.data.source_files import OfficialSplit, StrPath, find_part, read_lines, require_files

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["msmt17"]

LISTS = {
    "train": ("train",),
    "val": ("val",),
    "trainval": ("train", "val"),
    "query": ("query",),
    "gallery": ("gallery",),
}
OFFICIAL = {"train": 30_248, "val": 2_373, "trainval": 32_621, "query": 11_659, "gallery": 82_161}


def msmt17(root: StrPath, split: Literal["train", "val", "trainval", "query", "gallery"]) -> "Dataset":
    """MSMT17: 1,041 identities with 32,621 images to train on, 3,060 with 11,659 queries in a gallery of 82,161.

    Args:
        root: the unpacked `MSMT17_V1`, `MSMT17_V2` or `MSMT17`, or the folder that holds it.
        split: "train", "val" (other images of the training identities), "trainval" (both: what most papers train on),
            "query" or "gallery".

    Returns:
        Rows with the columns image, label and camera (0 … 14). Labels of the splits to train on are renumbered from 0.

    Raises:
        ArgumentError: there is no such split.
        DataError: a list or an image is missing, or a line cannot be read.
    """
    opened = OfficialSplit("MSMT17", root, split, OFFICIAL)
    training = split in ("train", "val", "trainval")
    parents = ("", "MSMT17_V1/", "MSMT17_V2/", "MSMT17/")
    places = [f"{parent}list_{LISTS[split][0]}.txt" for parent in parents]
    folder = find_part(opened.folder, *places, what=f"the list of '{split}'").parent
    side = "train" if training else "test"
    images = find_part(folder, side, f"mask_{side}_v2", what=f"the images of '{split}'")
    files, identities, cameras = [], [], []
    for name in LISTS[split]:
        path = find_part(folder, f"list_{name}.txt", what=f"the list of '{name}'")
        entries = [_parse(path, number, line) for number, line in enumerate(read_lines(path), start=1)]
        files += require_files(images, [entry[0] for entry in entries], listed_in=f"'{path.name}'")
        identities += [entry[1] for entry in entries]
        cameras += [entry[2] for entry in entries]
    return opened.rows(files, identities, renumber=training, camera=cameras)


def _parse(path: Path, number: int, line: str) -> tuple[str, int, int]:
    """File, identity, camera."""
    try:
        file, identity = line.rsplit(maxsplit=1)
        return file, int(identity), int(file.rsplit("/", 1)[-1].split("_")[2]) - 1
    except (ValueError, IndexError) as error:
        problem = f"has the line {number} {line!r}, expected '0000/0000_000_01_0303morning_0008_0.jpg 0'"
        raise DataError(path, problem, "Download it again.") from error
