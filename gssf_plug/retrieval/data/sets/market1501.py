r"""Market-1501: identity and camera stand in the file names.

<root>/bounding_box_train/0002_c1s1_000451_03.jpg      identity 2, camera 1, sequence 1
<root>/query/0001_c1s1_001051_00.jpg
<root>/bounding_box_test/-1_c1s1_000401_03.jpg         −1: junk, left out
<root>/bounding_box_test/0000_c1s1_000151_01.jpg       0: a distractor, kept
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gssf_plug.errors import DataError
from gssf_plug.retrieval.data.source_files import OfficialSplit, StrPath, find_part, image_files

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["market1501", "named_pedestrians"]

FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
OFFICIAL = {"train": 12_936, "query": 3_368, "gallery": 15_913}
NAME = re.compile(r"(-?\d+)_c(\d+)s\d+_\d+_\d+\.jpg", re.IGNORECASE)
JUNK = -1


def market1501(root: StrPath, split: Literal["train", "query", "gallery"]) -> "Dataset":
    """Market-1501: 751 identities with 12,936 images to train on, 750 with 3,368 queries in a gallery of 15,913.

    Args:
        root: the unpacked `Market-1501-v15.09.15`, or the folder that holds it.
        split: "train", "query" or "gallery".

    Returns:
        Rows with the columns image, label and camera (0 … 5). Labels of "train" are renumbered 0 … 750; those of the
        others are the identities of the file names, the same in both, where 0 is a distractor, which no query shows.

    Raises:
        ArgumentError: there is no such split.
        DataError: a folder is missing, holds no images, or holds a name of another pattern.
    """
    opened = OfficialSplit("Market-1501", root, split, OFFICIAL)
    name = FOLDERS[split]
    images = find_part(opened.folder, name, f"Market-1501-v15.09.15/{name}", what=f"the images of '{split}'")
    files, identities, cameras = named_pedestrians(images, NAME)
    return opened.rows(files, identities, renumber=split == "train", camera=cameras)


def named_pedestrians(images: Path, pattern: re.Pattern[str]) -> tuple[list[str], list[int], list[int]]:
    """Files, identities and cameras (from 0) of a folder whose file names hold identity and camera (from 1).

    Args:
        images: folder of the images.
        pattern: pattern of a whole file name, with a group for the identity, then one for the camera.

    Raises:
        DataError: a file has a name of another pattern.
    """
    files, identities, cameras = [], [], []
    for name in image_files(images):
        match = pattern.fullmatch(name)
        if match is None:
            problem = f"holds '{name}', which is not named like the files of the set"
            raise DataError(images, problem, "Remove it, or check that this is the right data set.")
        identity, camera = (int(part) for part in match.groups())
        if identity != JUNK:
            files.append(str(images / name))
            identities.append(identity)
            cameras.append(camera - 1)
    return files, identities, cameras
