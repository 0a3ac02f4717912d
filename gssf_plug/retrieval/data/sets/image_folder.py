"""Any folder of images in which every class is a subfolder.

<root>/[split/]class_a/one.jpg, <root>/[split/]class_a/deeper/two.png, <root>/[split/]class_b/…
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from gssf_plug.errors import DataError
from gssf_plug.retrieval.data.source_files import IMAGE_ENDINGS, StrPath, existing_folder, find_part, table

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["image_folder"]


def image_folder(root: StrPath, split: str | None = None) -> "Dataset":
    """Images below the subfolders of a folder; each subfolder is a class.

    Args:
        root: the folder.
        split: subfolder of `root` that holds the classes; default `root` itself.

    Returns:
        Columns image and label: the number of the class among the sorted names of its split.

    Raises:
        DataError: no such folder, no subfolders, or one without an image.
    """
    folder = existing_folder(root)
    if split is not None:
        folder = find_part(folder, split, what=f"the split '{split}'")
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    if not classes:
        raise DataError(folder, "has no subfolder", "Put the images of each class into a folder of its own.")
    files, labels = [], []
    for number, name in enumerate(classes):
        own = _images_below(folder / name)
        files += own
        labels += [number] * len(own)
    return table({"image": files, "label": labels})


def _images_below(folder: Path) -> list[str]:
    files = [
        os.path.join(place, name)
        for place, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith(IMAGE_ENDINGS)
    ]
    if not files:
        raise DataError(folder, "holds no image", f"Images end in one of {', '.join(IMAGE_ENDINGS)}.")
    return sorted(files)
