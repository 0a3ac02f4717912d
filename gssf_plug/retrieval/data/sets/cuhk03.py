"""CUHK03 in the new protocol (CUHK03-NP, Zhong et al. 2017): detected or labelled boxes, each in Market-1501's folders.

<root>/detected/bounding_box_train/0003_c1_21.png      identity 3, camera 1
<root>/detected/query/…, <root>/detected/bounding_box_test/…
<root>/labeled/…
"""

import re
from typing import TYPE_CHECKING, Literal

from gssf_plug.arguments import check_choice
from gssf_plug.retrieval.data.sets.market1501 import FOLDERS, named_pedestrians
from gssf_plug.retrieval.data.source_files import OfficialSplit, StrPath, find_part

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["cuhk03"]

OFFICIAL = {
    "detected": {"train": 7_365, "query": 1_400, "gallery": 5_332},
    "labeled": {"train": 7_368, "query": 1_400, "gallery": 5_328},
}
NAME = re.compile(r"(\d+)_c(\d+)_\d+\.(?:png|jpg)", re.IGNORECASE)


def cuhk03(
    root: StrPath,
    split: Literal["train", "query", "gallery"],
    *,
    boxes: Literal["detected", "labeled"] = "detected",
) -> "Dataset":
    """CUHK03-NP: 767 identities to train on, 700 to test on, two cameras.

    Args:
        root: the unpacked `cuhk03-np`, or the folder that holds it.
        split: "train", "query" or "gallery".
        boxes: "detected" (default) takes the boxes of a detector, "labeled" those drawn by hand; they are two data
            sets.

    Returns:
        Rows with the columns image, label and camera (0 or 1). Labels of "train" are renumbered 0 … 766.

    Raises:
        ArgumentError: there is no such split or kind of boxes.
        DataError: a folder is missing, holds no images, or holds a name of another pattern.
    """
    check_choice("boxes", boxes, OFFICIAL)
    opened = OfficialSplit(f"CUHK03-NP ({boxes})", root, split, OFFICIAL[boxes])
    part = f"{boxes}/{FOLDERS[split]}"
    images = find_part(opened.folder, part, f"cuhk03-np/{part}", what=f"the images of '{split}'")
    files, identities, cameras = named_pedestrians(images, NAME)
    return opened.rows(files, identities, renumber=split == "train", camera=cameras)
