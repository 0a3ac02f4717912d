"""Images from files, bytes, `datasets` columns or PIL, to tensors; one that cannot be read is named by its file.

Needs Pillow, numpy and torch alone.
"""

import io
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from gssf_plug.errors import GSSFError

__all__ = ["UNREADABLE", "ImageRows", "Rows", "UnreadableError", "image_tensor", "open_image"]

# What Pillow raises for damaged files; a `ValueError` or `TypeError` is a bug of the caller and passes through.
UNREADABLE = (OSError, SyntaxError, EOFError, Image.DecompressionBombError)


class UnreadableError(GSSFError, OSError):
    """A row or a file that cannot be read.

    Args:
        what: the file or row that cannot be read.
        problem: text of the error that reading raised.
    """

    def __init__(self, what: str, problem: object) -> None:
        super().__init__(f"{what} cannot be read: {problem}")


class Rows(Protocol):
    """A map-style data set."""

    def __len__(self) -> int:
        """Number of rows."""
        ...

    def __getitem__(self, index: int, /) -> Any:
        """One row."""
        ...


def open_image(source: Any) -> Image.Image:
    """An RGB image, decoded, upright as its EXIF orientation says, with deep pixels scaled to 0 … 255.

    Pixels of 16 bits are divided by 257. Whole numbers of 32 bits and floats say no range of their own: their white is
    the smallest of 1 (floats), 255, 65,535 and 2³¹-1 that no pixel exceeds; floats below 0 or beyond all of these are
    stretched from their least to their greatest value, and those that are no numbers are black.

    Args:
        source: a path; encoded bytes; what `datasets.Image(decode=False)` gives, {"path": ..., "bytes": ...}; or a PIL
            image.

    Raises:
        UnreadableError: the image cannot be read; the file is named, or the number of bytes where there is none.
    """
    path, content = _path_and_bytes(source)
    name = f"image '{path}'" if path else f"an image of {len(content or b'')} bytes"
    try:
        if isinstance(source, Image.Image):
            return _upright(source)
        with Image.open(io.BytesIO(content) if content is not None else Path(path)) as image:
            return _upright(image)
    except UNREADABLE as error:
        raise UnreadableError(name, error) from error


def _upright(image: Image.Image) -> Image.Image:
    """The image in RGB of 8 bits, turned as the camera was held."""
    image.load()  # what is damaged raises here, so that an error below is one of the EXIF data alone
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        turned = ImageOps.exif_transpose(image) if orientation != 1 else image
    except (SyntaxError, OSError, ValueError, TypeError, KeyError, struct.error):
        turned = image  # unreadable EXIF data leave the picture as its pixels lie
    deep = turned.mode == "F" or turned.mode.startswith("I")
    return (_eight_bits(turned) if deep else turned).convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """A grey image of 16 or 32 bits as one of 8: Pillow's own conversion clips everything beyond 255 to white."""
    pixels = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0.0, neginf=0.0)
    lowest, highest = float(pixels.min()), float(pixels.max())
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        black, white = 0.0, 65535.0  # the files say 16 bits, however dark the picture is
    else:
        whites = (1.0,) * (image.mode == "F") + (255.0, 65535.0, 2.0**31 - 1)
        fitting = [white for white in whites if lowest >= 0 and highest <= white]
        black, white = (0.0, fitting[0]) if fitting else (lowest, highest)
    scaled = (pixels - black) * (255 / max(white - black, 1e-300))
    return Image.fromarray(scaled.round().astype(np.uint8))


def image_tensor(image: Image.Image, size: int | None = None) -> UInt8[Tensor, "3 h w"]:
    """Pixels of an image as bytes, channels first; with `size` resized to size×size (bicubic, antialiased)."""
    image = image.convert("RGB")
    if size is not None and image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.reshape(image.height, image.width, 3).permute(2, 0, 1).contiguous()


class ImageRows:
    """Rows of a data set with one column of images decoded, and passed through a function, when a row is read.

    Args:
        rows: map-style data set of mappings. Of a `datasets.Dataset` give it with `Image(decode=False)`, so that
            decoding, and its errors, happen here.
        column: name of the column of images; default "image".
        transform: function from an RGB image to anything; default `image_tensor`.

    Raises:
        UnreadableError: a row is read whose image cannot be read; file and row are named.
    """

    def __init__(
        self, rows: Rows, *, column: str = "image", transform: Callable[[Image.Image], Any] = image_tensor
    ) -> None:
        self.rows = rows
        self.column = column
        self.transform = transform

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        return {**row, self.column: self.transform(open_image(row[self.column]))}


def _path_and_bytes(source: Any) -> tuple[str, bytes | None]:
    if isinstance(source, Mapping):
        return source.get("path") or "", source.get("bytes")
    if isinstance(source, bytes):
        return "", source
    if isinstance(source, str | os.PathLike):
        return os.fspath(source), None
    return getattr(source, "filename", "") or "", None
