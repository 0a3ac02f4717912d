"""Any folder of images in which every class is a subfolder.

<root>/[split/]class_a/one.jpg, <root>/[split/]class_a/deeper/two.png, <root>/[split/]class_b/…
"""

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np

from gssf_plug.arguments import check_path, checked_seed
from gssf_plug.errors import ArgumentError, DataError
from gssf_plug.retrieval.data.source_files import (
    IMAGE_ENDINGS,
    StrPath,
    existing_folder,
    find_part,
    is_hidden,
    is_image_name,
    table,
)

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["image_folder"]

logger = logging.getLogger(__name__)

SPLITS = frozenset({"train", "training", "val", "valid", "validation", "dev", "test", "testing"})


@overload
def image_folder(
    root: StrPath, split: str | None = None, *, split_classes: None = None, seed: int = 0
) -> "Dataset": ...
@overload
def image_folder(
    root: StrPath, split: str | None = None, *, split_classes: float, seed: int = 0
) -> "tuple[Dataset, Dataset]": ...
def image_folder(
    root: StrPath, split: str | None = None, *, split_classes: float | None = None, seed: int = 0
) -> "Dataset | tuple[Dataset, Dataset]":
    """Images below the subfolders of a folder; each subfolder is a class.

    Hidden files and folders (`.git`, `.ipynb_checkpoints`, `._photo.jpg`, `__MACOSX`) are no images and no classes.

    Args:
        root: folder that holds one subfolder for each class.
        split: subfolder of `root` that holds the classes, such as "train"; None (default) takes `root` itself.
        split_classes: share of the classes, 0 < share < 1, that are held out for testing, such as 0.3; at least one
            class is on each side. Retrieval is measured on classes that training never saw, so whole classes are held
            out, not images of each. None (default) does not split.
        seed: seed of the choice of the held-out classes; default 0. The same names and seed give the same choice.

    Returns:
        Rows with the columns image and label, which is the number of the class among the sorted names. With
        `split_classes` a pair: the rows to train on and the held-out ones. Training classes are then numbered 0 … C-1,
        held-out classes from C on, so that no number stands on both sides.

    Raises:
        ArgumentError: `split_classes` is no share, or there are fewer than two classes to split.
        DataError: the folder is missing, has no subfolders or subfolders that are splits, or a class has no image.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in ("ant", "bee", "cat", "dog"):
        ...     (folder / name).mkdir()
        ...     Image.new("RGB", (4, 4)).save(folder / name / "one.png")
        >>> train, test = image_folder(folder, split_classes=0.25)
        >>> train.with_format(None)["label"][:], test.with_format(None)["label"][:]
        ([0, 1, 2], [3])
    """
    folder = existing_folder(root)
    seed = checked_seed(seed)
    if split is not None:
        check_path("split", split)
    if split is not None:
        folder = find_part(folder, split, what=f"the split '{split}'")
    classes = _classes(folder)
    if split_classes is None:
        return _rows(folder, classes)
    train, held = _split(classes, split_classes, seed)
    return _rows(folder, train), _rows(folder, held, first=len(train))


def _classes(folder: Path) -> list[str]:
    """Sorted names of the subfolders that are classes."""
    entries = [entry for entry in os.scandir(folder) if not is_hidden(entry.name)]
    classes = sorted(entry.name for entry in entries if entry.is_dir())
    loose = sum(is_image_name(entry.name) and entry.is_file() for entry in entries)
    if not classes and loose:
        problem = (
            f"holds {loose:,} images beside one another and no subfolder, so that nothing says which belong together"
        )
        remedy = (
            "Move the images of each class into a subfolder named after it; or, where a table says the classes, use "
            "read_columns('table.csv', image='file', label='class')."
        )
        raise DataError(folder, problem, remedy)
    if not classes:
        raise DataError(folder, "has no subfolder", "Put the images of each class into a folder of its own.")
    if {name.lower() for name in classes} <= SPLITS and all(_has_folders(folder / name) for name in classes):
        problem = f"holds splits, not classes: {', '.join(map(repr, classes))}"
        raise DataError(folder, problem, f"Name the one to open: image_folder(root, '{classes[0]}').")
    if loose:
        logger.warning("%s: %s images that lie beside the class folders are left out", folder, f"{loose:,}")
    return classes


def _has_folders(folder: Path) -> bool:
    return any((folder / name).is_dir() and not is_hidden(name) for name in os.listdir(folder))


def _split(classes: list[str], share: float, seed: int) -> tuple[list[str], list[str]]:
    """Class names to train on and held-out ones, both sorted."""
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
        raise ArgumentError("split_classes", "be a share of the classes, 0 < share < 1", repr(share), "Usual is 0.3.")
    if len(classes) < 2:
        remedy = "Give more classes, or leave `split_classes` out."
        raise ArgumentError("split_classes", "have at least two classes to split", f"only {classes}", remedy)
    # at least one class on each side, whatever the share rounds to
    count = min(max(round(share * len(classes)), 1), len(classes) - 1)
    held = set(np.random.default_rng(seed).permutation(len(classes))[:count].tolist())
    sides = [[name for number, name in enumerate(classes) if (number in held) is side] for side in (False, True)]
    return sides[0], sides[1]


def _rows(folder: Path, classes: list[str], *, first: int = 0) -> "Dataset":
    files, labels = [], []
    for number, name in enumerate(classes, first):
        own = _images_below(folder / name)
        files += own
        labels += [number] * len(own)
    return table({"image": files, "label": labels})


def _images_below(folder: Path) -> list[str]:
    files = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not is_hidden(name)]  # in place: os.walk does not enter the others
        files += [os.path.join(place, name) for name in names if is_image_name(name)]
    if not files:
        raise DataError(folder, "holds no image", f"Images end in one of {', '.join(IMAGE_ENDINGS)}.")
    return sorted(files)
