"""A data set's parts on disk: found, or named with what was expected where.

Every loader of this folder goes through here, so that each gives an ordinary `datasets.Dataset` of the same columns:
`image` (an RGB PIL image, decoded when its row is read) or `features` (float32, regions × width), `captions` (list of
str), `label` (int), `camera` (int). Files are listed when a set is opened, never read.
"""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gssf_plug.arguments import check_choice, check_path, described
from gssf_plug.errors import ArgumentError, DataError, near_matches
from gssf_plug.retrieval.data.images import open_image

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = [
    "IMAGE_ENDINGS", "OfficialSplit", "StrPath", "check_split", "column", "decode_columns", "existing_folder",
    "find_part", "image_files", "is_hidden", "is_image_name", "numbered", "read_lines", "require_files", "table",
]  # fmt: skip

logger = logging.getLogger(__name__)

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
StrPath = str | os.PathLike[str]


def existing_folder(root: StrPath, argument: str = "root") -> Path:
    """The folder of a data set; `~` is the home folder.

    Raises:
        ArgumentError: the value is no path.
        DataError: there is no such folder; near names beside it are offered.
    """
    check_path(argument, root)
    folder = Path(root).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise DataError(folder, "is a file, not a folder", "Give the folder that the archive was unpacked to.")
    raise DataError(folder, "does not exist", _near_names(folder) or "Give the folder or table of the data set.")


def find_part(root: Path, *places: str, what: str) -> Path:
    """The first of several places, relative to `root`, that exists.

    Raises:
        DataError: none of the parts exists; all are named.
    """
    for place in places:
        if (root / place).exists():
            return root / place
    expected = " or ".join(f"'{place}'" for place in places)
    problem = f"lacks {what}, expected in it as {expected}"
    raise DataError(
        root, problem, _near_names(root / places[0]) or "Unpack the archive that holds it, or correct the path."
    )


def require_files(folder: Path, names: Sequence[str], *, listed_in: str) -> list[str]:
    """Paths of `names`, relative to `folder`; each subfolder is listed once, no file is opened.

    Raises:
        DataError: files are missing; the message says how many, and names the first.
    """
    held: dict[str, set[str]] = {}
    missing = []
    for name in names:
        parent, file = os.path.split(name)
        if parent not in held:
            inside = folder / parent
            held[parent] = set(os.listdir(inside)) if inside.is_dir() else set()
        if file not in held[parent]:
            missing.append(name)
    if missing:
        problem = f"lacks {len(missing):,} of the {len(names):,} files that {listed_in} names, first '{missing[0]}'"
        raise DataError(folder, problem, "Unpack the images again, all of them.")
    return [os.path.join(folder, name) for name in names]


def is_image_name(name: str) -> bool:
    """Whether a file is an image by its ending, and not hidden, as macOS' `._photo.jpg` is."""
    return name.lower().endswith(IMAGE_ENDINGS) and not is_hidden(name)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is none of the user's: `.git`, `.ipynb_checkpoints`, `._photo.jpg`, `__MACOSX`."""
    return name.startswith(".") or name == "__MACOSX"


def image_files(folder: Path) -> list[str]:
    """Names of the image files in a folder, sorted; subfolders, hidden and other files (`Thumbs.db`) are left out.

    Raises:
        DataError: the folder holds no images.
    """
    names = sorted(filter(is_image_name, os.listdir(folder)))
    if not names:
        raise DataError(folder, "holds no image", f"Images end in one of {', '.join(IMAGE_ENDINGS)}.")
    return names


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, stripped, without empty ones at its end and without a byte order mark.

    Raises:
        DataError: the file is no UTF-8 text.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().split("\n")
    except UnicodeDecodeError as error:
        raise DataError(path, f"is not UTF-8 text ({error})", "Download it again.") from error
    return [line.strip() for line in lines]


def check_split(split: str, splits: Iterable[str]) -> None:
    """Raise `ArgumentError` for a split that the set does not have."""
    splits = tuple(splits)
    if not isinstance(split, str) or split not in splits:
        raise ArgumentError("split", f"be one of {splits}", repr(split), near_matches(str(split), splits))


class OfficialSplit:
    """One split of a classic data set: that there is such a split, where it lies, how many images it should have.

    Args:
        name: name of the data set, for the warning.
        root: folder of the data set, as the caller gave it.
        split: split that is asked for.
        official: number of images of each split in the official set.

    Raises:
        ArgumentError: the set has no such split.
        DataError: there is no such folder.
    """

    def __init__(self, name: str, root: StrPath, split: str, official: Mapping[str, int]) -> None:
        check_split(split, official)
        self.name, self.split, self.expected = name, split, official[split]
        self.folder = existing_folder(root)

    def rows(
        self, files: Sequence[str], labels: Sequence[int], *, renumber: bool = False, **more: Sequence[Any]
    ) -> "Dataset":
        """The split as a `datasets.Dataset`; a warning where its size is not the official one.

        Args:
            files: paths of the images.
            labels: label of each image.
            renumber: True renumbers the labels to 0 … C-1, which a classifier needs; default False.
            more: further columns.
        """
        if len(files) != self.expected:  # a download that was cut, or a copy
            text = "%s, split '%s': %s images; the official set has %s"
            logger.warning(text, self.name, self.split, f"{len(files):,}", f"{self.expected:,}")
        return table({"image": files, "label": numbered(labels) if renumber else labels, **more})


def numbered(names: Sequence[Any]) -> list[int]:
    """Names to numbers 0 … C-1, in their sorted order: what a classifier needs."""
    numbers = {name: number for number, name in enumerate(sorted(set(names)))}
    return [numbers[name] for name in names]


def table(columns: Mapping[str, Any], decode: Any = None) -> "Dataset":
    """A `datasets.Dataset` of columns, whose rows are decoded when they are read.

    Args:
        columns: columns as the text of the module names them; `image` holds paths.
        decode: function from a batch of raw columns to a batch of values; default `decode_columns`.
    """
    from datasets import Dataset

    rows = Dataset.from_dict(dict(columns))
    rows.set_transform(decode or decode_columns)
    return rows


def decode_columns(batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """Images opened, one caption as a list of one, features as arrays; other columns as they are.

    Raises:
        UnreadableError: an image cannot be read; its file is named.
    """
    decoded = dict(batch)
    if "image" in batch:
        decoded["image"] = [open_image(source) for source in batch["image"]]
    if "captions" in batch:
        decoded["captions"] = [[text] if isinstance(text, str) else list(text) for text in batch["captions"]]
    if "features" in batch:
        decoded["features"] = [np.asarray(features, dtype=np.float32) for features in batch["features"]]
    return decoded


def column(rows: Any, name: str) -> list[Any]:
    """A whole column of a `datasets.Dataset` without decoding its images.

    Raises:
        ArgumentError: the rows are no `datasets.Dataset`, or have no such column.
    """
    if not hasattr(rows, "with_format") or not isinstance(getattr(rows, "column_names", None), list):
        raise ArgumentError("rows", "be a datasets.Dataset", described(rows), "See read_columns; take one split.")
    check_choice("name", name, rows.column_names)
    return list(rows.with_format(None)[name])


def _near_names(path: Path) -> str:
    """A sentence that offers names beside `path` like its own; empty where there are none."""
    parent = path.parent
    while not parent.is_dir() and parent != parent.parent:
        path, parent = parent, parent.parent
    near = get_close_matches(path.name, os.listdir(parent), n=3, cutoff=0.6)
    return f"Did you mean {' or '.join(repr(str(parent / name)) for name in near)}?" if near else ""
