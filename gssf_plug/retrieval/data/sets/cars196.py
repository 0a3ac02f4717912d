"""Cars-196 in the class split of metric learning: the first half of the classes trains, the second tests.

    <root>/cars_annos.mat               all 16,185 images: relative_im_path, class, …
    <root>/car_ims/000001.jpg

or, as it is also handed out:

    <root>/devkit/cars_train_annos.mat, <root>/cars_train/00001.jpg
    <root>/cars_test_annos_withlabels.mat (or in devkit/), <root>/cars_test/00001.jpg

The annotations are MATLAB files, read by SciPy, which is needed for this data set alone.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gssf_plug.errors import DataError
from gssf_plug.retrieval.data.source_files import OfficialSplit, StrPath, find_part, require_files

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["cars196"]

OFFICIAL = {"train": 8_054, "test": 8_131}


def cars196(root: StrPath, split: Literal["train", "test"]) -> "Dataset":
    """Cars-196: 98 classes with 8,054 images to train on, 98 others with 8,131 to test on.

    Args:
        root: folder with `cars_annos.mat` and `car_ims`, or with `devkit`, `cars_train` and `cars_test`.
        split: "train" or "test".

    Returns:
        Rows with the columns image and label; labels are 0 … 97 in "train", 98 … 195 in "test".

    Raises:
        ArgumentError: there is no such split.
        DataError: a part of the data set is missing or damaged.
        ImportError: SciPy is not installed.
    """
    opened = OfficialSplit("Cars-196", root, split, OFFICIAL)
    folder = opened.folder
    names, classes = _together(folder) if (folder / "cars_annos.mat").exists() else _apart(folder)
    half = max(classes) // 2
    chosen = [image for image, number in enumerate(classes) if (number <= half) == (split == "train")]
    files = require_files(folder, [names[image] for image in chosen], listed_in="the annotation")
    return opened.rows(files, [classes[image] - 1 for image in chosen])


def _together(folder: Path) -> tuple[list[str], list[int]]:
    annotations = _read(folder / "cars_annos.mat", "relative_im_path", "class")
    return [str(name) for name, _ in annotations], [int(number) for _, number in annotations]


def _apart(folder: Path) -> tuple[list[str], list[int]]:
    train = find_part(folder, "devkit/cars_train_annos.mat", "cars_train_annos.mat", what="'cars_annos.mat', and")
    labelled = "cars_test_annos_withlabels.mat"
    test = find_part(folder, labelled, f"devkit/{labelled}", what="the annotation of the test images with classes")
    names, classes = [], []
    for path, images in ((train, "cars_train"), (test, "cars_test")):
        for name, number in _read(path, "fname", "class"):
            names.append(f"{images}/{name}")
            classes.append(int(number))
    return names, classes


def _read(path: Path, *fields: str) -> list[tuple[Any, ...]]:
    """Some fields of every element of the struct array `annotations`."""
    try:
        from scipy.io import loadmat  # type: ignore[import-untyped]
        from scipy.io.matlab import MatReadError  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError("cars196 reads MATLAB files and needs SciPy. Install it with: pip install scipy") from error
    try:
        annotations = loadmat(path, squeeze_me=True)["annotations"].reshape(-1)
        return [tuple(element[field] for field in fields) for element in annotations]
    except (MatReadError, ValueError, KeyError, OSError, NotImplementedError, TypeError) as error:
        problem = f"is no annotation of Cars-196 ({type(error).__name__}: {error})"
        raise DataError(path, problem, "Download it again.") from error
