"""The images of rows before anything decodes them: what tells them apart, and each decoded in one size."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from PIL import Image
from torch.utils.data import Dataset

from gssf_plug.arguments import check_function, check_path, check_text, described, has_rows
from gssf_plug.errors import ArgumentError, near_matches
from gssf_plug.retrieval.data.images import UnreadableError, open_image

__all__ = ["DecodedImage", "ImageSources", "Size", "check_size"]

Size = int | tuple[int, int] | None
CHUNK = 1000  # rows of a `datasets.Dataset` read at once


class DecodedImage(NamedTuple):
    """An image as bytes; height 0 and a problem where it cannot be read."""

    height: int
    width: int
    pixels: bytes
    problem: str = ""


class ImageSources(Dataset[DecodedImage]):
    """The images of rows, not decoded until one is read.

    Args:
        rows: map-style data set of mappings; a `datasets.Dataset` is read undecoded, whatever its format.
        column: name of the column of images, which are paths, encoded bytes or PIL images.
        size: size that the cache brings images to, see `cache_images`.
    """

    def __init__(self, rows: Any, column: str, size: Size) -> None:
        if hasattr(rows, "cast_column"):
            import datasets

            rows = rows.with_format(None)
            if isinstance(rows.features.get(column), datasets.Image):
                rows = rows.cast_column(column, datasets.Image(decode=False))
        self.rows, self.column, self.size = rows, column, size

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> DecodedImage:
        try:
            image = _resized(open_image(self.rows[number][self.column]), self.size)
        except UnreadableError as error:
            return DecodedImage(0, 0, b"", str(error))
        return DecodedImage(image.height, image.width, image.tobytes())

    def digest(self) -> str:
        """Of all images, their order and the size.

        Raises:
            ArgumentError: there is no such column, or the images are of another kind.
        """
        columns = list(self._row(0))
        if self.column not in columns:
            remedy = near_matches(self.column, map(str, columns))
            raise ArgumentError("column", f"be a column of the rows, {columns}", repr(self.column), remedy)
        whole = hashlib.blake2b(f"{len(self)} {self.size}".encode(), digest_size=16)
        for source in self._values():
            whole.update(_described(source, self.column))
        return whole.hexdigest()

    def _values(self) -> Iterator[Any]:
        if hasattr(self.rows, "cast_column"):
            for batch in self.rows.select_columns([self.column]).iter(CHUNK):
                yield from batch[self.column]
        else:
            for number in range(len(self)):
                yield self._row(number).get(self.column)

    def _row(self, number: int) -> Mapping[str, Any]:
        row = self.rows[number]
        if not isinstance(row, Mapping):
            rule, remedy = "have rows that are mappings from columns to values", "Such as a datasets.Dataset."
            raise ArgumentError("rows", rule, described(row), remedy)
        return row


def _described(source: Any, column: str) -> bytes:
    """What tells an image from others without decoding it."""
    content, path = (source.get("bytes"), source.get("path")) if isinstance(source, dict) else (source, source)
    if isinstance(content, bytes):
        return hashlib.blake2b(content, digest_size=16).digest()
    if isinstance(content, Image.Image):
        return hashlib.blake2b(f"{content.mode} {content.size}".encode() + content.tobytes(), digest_size=16).digest()
    if not isinstance(path, str | os.PathLike):
        remedy = "Give the rows as they are before anything decodes them."
        raise ArgumentError(column, "hold paths, encoded bytes or PIL images", type(source).__name__, remedy)
    try:
        stat = os.stat(path)
    except OSError:
        return f"{os.path.basename(path)} missing\n".encode()
    return f"{os.path.basename(path)} {stat.st_size} {stat.st_mtime_ns}\n".encode()


def _resized(image: Image.Image, size: Size) -> Image.Image:
    if size is None:
        return image
    if isinstance(size, int):
        short = min(image.size)
        width, height = (max(1, round(side * min(1.0, size / short))) for side in image.size)
    else:
        height, width = size
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BICUBIC)


def check_cached(rows: Any, folder: Any, column: Any, transform: Any) -> None:
    """What a cache of images is made of, or opened with.

    Raises:
        ArgumentError: the rows are no mappings by number, the folder no path, or column and transform are none.
    """
    if not has_rows(rows):
        rule, remedy = "be a data set with a length and rows by number", "Take one split, or collect a stream first."
        raise ArgumentError("rows", rule, described(rows), remedy)
    check_path("folder", folder)
    check_text("column", column, "be the name of a column", "Such as 'image'.")
    check_function("transform", transform, "It gets each image.", takes=1, optional=True)


def check_size(size: Any) -> None:
    """Raise `ArgumentError` where `size` is neither None, a number of pixels nor a pair of them."""
    sides = size if isinstance(size, tuple) and len(size) == 2 else (size,)
    numbers = all(isinstance(side, int) and not isinstance(side, bool) and side >= 1 for side in sides)
    if size is not None and not numbers:
        raise ArgumentError(
            "size", "be a number of pixels, or (height, width)", repr(size), "Such as 224, or (256, 128)."
        )
