"""Region features of SCAN and of VSE∞, {f30k,coco}_precomp: one array per split, captions line by line.

    SCAN, SGRAF, DBL:   <folder>/train_ims.npy          (images or captions, 36, 2048), float32
                        <folder>/train_caps.txt         five lines per image
    VSE∞, RCAR:         <folder>/precomp/train_ims.npy, <folder>/precomp/train_caps.txt

Splits are train, dev, test and, of COCO, testall (5,000 images; test is its first fifth). The array holds one row per
image, or per caption (each image five times over), which its length tells: the `im_div` of public code, 5 or 1. It is
memory-mapped: a set may be larger than memory. dev is cut to its first 5,000 captions, as everywhere in the literature.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from gssf_plug.arguments import checked_count
from gssf_plug.errors import ArgumentError, DataError
from gssf_plug.retrieval.data.source_files import (
    StrPath,
    check_split,
    existing_folder,
    find_part,
    read_lines,
    table,
)

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["region_features"]

SPLITS = ("train", "dev", "test", "testall")


def region_features(
    folder: StrPath,
    split: Literal["train", "dev", "test", "testall"],
    *,
    captions_per_image: int = 5,
    dev_captions: int | None = 5_000,
) -> "Dataset":
    """Region features and captions, one row per image.

    Args:
        folder: the folder `f30k_precomp` or `coco_precomp`, or a folder with `precomp` in it.
        split: "train", "dev", "test" or "testall".
        captions_per_image: number of captions of each image, which stand next to each other in the file; default 5.
        dev_captions: number of captions of "dev" to keep, from the first; None keeps all (COCO has 25,000).

    Returns:
        Rows with the columns features (regions × width, float32), captions and label (the number of the image).

    Raises:
        ArgumentError: there is no such split, or numbers of captions do not divide.
        DataError: a part is missing or damaged, or features and captions disagree in number.
    """
    check_split(split, SPLITS)
    captions_per_image = checked_count("captions_per_image", captions_per_image, "The field uses 5.")
    if dev_captions is not None:
        rule = f"be a positive multiple of the {captions_per_image} captions of an image, or None"
        dev_captions = checked_count("dev_captions", dev_captions, "The field uses 5,000.", rule=rule)
    place = existing_folder(folder, "folder")
    features = find_part(place, f"{split}_ims.npy", f"precomp/{split}_ims.npy", what=f"the features of '{split}'")
    captions = find_part(features.parent, f"{split}_caps.txt", what=f"the captions of '{split}'")
    texts = read_lines(captions)
    if "" in texts:
        raise DataError(captions, f"has an empty caption in line {texts.index('') + 1}", "Every line is one caption.")
    array = _open(features)
    repeats = _features_per_image(features, array, captions, len(texts), captions_per_image)
    images = len(array) // repeats
    if split == "dev" and dev_captions is not None:
        if dev_captions % captions_per_image:
            rule = f"be a positive multiple of the {captions_per_image} captions of an image, or None"
            raise ArgumentError("dev_captions", rule, dev_captions, "The field uses 5,000.")
        images = min(images, dev_captions // captions_per_image)
    starts = range(0, images * captions_per_image, captions_per_image)
    columns = {
        "features": [image * repeats for image in range(images)],
        "captions": [texts[start : start + captions_per_image] for start in starts],
        "label": list(range(images)),
    }
    return table(columns, StoredFeatures(features))


class StoredFeatures:
    """Reads features by their row of a memory-mapped array; opened once in every process.

    Args:
        path: the .npy file of an array (rows, regions, width).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._array: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_array": None}  # a pickled memory map would be the whole array

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Row numbers in the column `features` become copies of their features."""
        if "features" not in batch:
            return batch
        if self._array is None:
            self._array = _open(self.path)
        return {**batch, "features": [np.array(self._array[row], dtype=np.float32) for row in batch["features"]]}


def _open(path: Path) -> Any:
    try:
        array = np.load(path, mmap_mode="r")
    except (ValueError, OSError, EOFError) as error:
        raise DataError(path, f"is damaged or no .npy array ({error})", "Unpack the features again.") from error
    if array.ndim != 3 or not np.issubdtype(array.dtype, np.floating):
        problem = f"holds {array.dtype} of shape {array.shape}, expected floating (rows, regions, width)"
        raise DataError(path, problem, "SCAN's arrays are (rows, 36, 2048) float32.")
    return array


def _features_per_image(path: Path, array: Any, captions: Path, texts: int, per_image: int) -> int:
    """How many rows of the array an image has: 1, or as many as captions."""
    rows = len(array)
    if texts == rows * per_image:
        return 1
    if texts != rows or rows % per_image:
        problem = (
            f"has {rows:,} rows of features for the {texts:,} captions of '{captions.name}'; expected a row for each "
            f"caption, or one for {per_image}"
        )
        raise DataError(path, problem, "Take both files from the same download, or set captions_per_image.")
    if rows and not np.array_equal(array[0], array[per_image - 1]):
        problem = f"has a row for each caption, but rows 0 and {per_image - 1} are not the same image"
        raise DataError(path, problem, "Pass captions_per_image=1 if every caption has an image of its own.")
    return per_image
