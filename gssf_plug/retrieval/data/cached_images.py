"""Images decoded once: a folder of raw pixels that is memory-mapped and read in place of the files.

    cache.json     format, what the pixels were made from, how many rows are done, which of them cannot be read
    index.bin      int64 (rows, 3): where an image begins in pixels.bin, its height and its width
    pixels.bin     RGB bytes, image after image, in the order of the rows

Promises. A decoding that is killed goes on from the last thousand images. A cache that was made from other images, in
another order or for another size is refused, never read: it knows the name, size and time of change of every file, or a
digest of encoded bytes. Of several processes that ask for the same cache at once, one decodes and the others wait.
Pages are shared by all processes of a machine. Pixels are not verified when they are read: the folder is trusted like
the images themselves.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from PIL import Image
from torch.utils.data import DataLoader
from tqdm import tqdm

from gssf_plug.arguments import checked_count, checked_flag, described
from gssf_plug.errors import ArgumentError, CheckpointError
from gssf_plug.files import parse_json, write_atomically
from gssf_plug.retrieval.data.image_sources import ImageSources, Size, check_cached, check_size
from gssf_plug.retrieval.data.images import Rows, UnreadableError

__all__ = ["CachedImages", "cache_images"]

VERSION = 1
BLOCK = 1000  # images between two notes of how far it is
MANIFEST, INDEX, PIXELS, LOCK = "cache.json", "index.bin", "pixels.bin", "cache.lock"


class CachedImages:
    """Rows whose images come from a cache; all other columns from the rows themselves. See `cache_images`.

    Args:
        rows: the rows that the cache was made from.
        folder: folder of a finished cache.
        column: name of the column of images; default "image".
        transform: function from an RGB image to anything; None (default) gives the PIL image.

    Raises:
        CheckpointError: the cache is missing, unfinished, damaged, or of another number of rows.
        UnreadableError: a row is read whose image could not be read.
    """

    def __init__(
        self,
        rows: Rows,
        folder: str | os.PathLike[str],
        *,
        column: str = "image",
        transform: Callable[[Image.Image], Any] | None = None,
    ) -> None:
        check_cached(rows, folder, column, transform)
        self.rows: Any = rows.remove_columns(column) if hasattr(rows, "remove_columns") else rows
        self.folder = Path(folder)
        self.column = column
        self.transform = transform
        self._open(len(rows))

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        if not isinstance(row, Mapping):
            rule, remedy = "have rows that are mappings from columns to values", "Give those the cache was made from."
            raise ArgumentError("rows", rule, described(row), remedy)
        return {**row, self.column: self._image(index)}

    def __getitems__(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Several rows at once."""
        # `datasets` gives several rows by one read of its table
        many = getattr(self.rows, "__getitems__", None)
        rows = many(list(numbers)) if many is not None else [self.rows[number] for number in numbers]
        return [{**row, self.column: self._image(number)} for row, number in zip(rows, numbers, strict=True)]

    def _image(self, number: int) -> Any:
        start, height, width = self.index[number].tolist()
        if height == 0:
            problem = self.unreadable[str(number % len(self))]
            raise UnreadableError(f"row {number} of the cache '{self.folder}'", problem)
        pixels = self.pixels[start : start + 3 * height * width]
        image = Image.frombuffer("RGB", (width, height), pixels, "raw", "RGB", 0, 1)
        return image if self.transform is None else self.transform(image)

    def _open(self, rows: int) -> None:
        manifest = _read_manifest(self.folder)
        if manifest["done"] != rows:
            problem = f"holds {manifest['done']:,} of {rows:,} images"
            raise CheckpointError(self.folder, problem, "Call cache_images, which goes on where it stopped.")
        _check_files(self.folder, manifest)
        self.unreadable: dict[str, str] = manifest["unreadable"]
        self.index = np.fromfile(self.folder / INDEX, dtype=np.int64).reshape(-1, 3)
        sizes = 3 * self.index[:, 1] * self.index[:, 2]
        if (self.index < 0).any() or (self.index[:, 0] + sizes > manifest["bytes"]).any():
            raise _damaged(self.folder / INDEX, "names pixels that are not there")
        self.pixels = np.memmap(self.folder / PIXELS, dtype=np.uint8, mode="r")

    def __getstate__(self) -> dict[str, Any]:
        """Without the pixels, which a worker that is spawned maps again."""
        return {name: value for name, value in self.__dict__.items() if name != "pixels"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.pixels = np.memmap(self.folder / PIXELS, dtype=np.uint8, mode="r")


def cache_images(
    rows: Rows,
    folder: str | os.PathLike[str],
    *,
    size: Size = None,
    column: str = "image",
    transform: Callable[[Image.Image], Any] | None = None,
    workers: int = 0,
    skip_unreadable: bool = False,
    progress: bool = False,
) -> CachedImages:
    """Decode every image of `rows` once; later calls with the same images only open what is there.

    Args:
        rows: map-style data set of mappings whose images are paths, encoded bytes or PIL images. A `datasets.Dataset`
            is read undecoded, also where its rows come with decoded images, as those of `gssf_plug.retrieval.data` do.
            Of others every row is read again for its other columns, so reading one must not decode its image.
        folder: folder of the cache, which is created.
        size: (height, width) resizes to just that; one number reduces the shorter side to it and keeps the shape; both
            bicubic. None (default) keeps images as they are. A pixel takes one byte for each channel: 98 kB for
            256×128.
        column: name of the column of images; default "image".
        transform: function from an RGB image to anything, which is called at every visit: augmentation goes here. None
            (default) gives the PIL image, so that whatever read the rows before reads these.
        workers: number of processes that decode; 0 (default) decodes in this one.
        skip_unreadable: True notes images that cannot be read, and raises when their row is read; False (default) stops
            here.
        progress: True shows a progress bar. Default False.

    Raises:
        ArgumentError: the size is none, there are no rows or no such column, or the images are of another kind.
        CheckpointError: the folder holds a cache of other images or of another size, or a damaged one; or the disk
            refuses.
        UnreadableError: an image cannot be read; file and row are named.

    Example:
        >>> import tempfile
        >>> rows = [{"image": Image.new("RGB", (20, 10), (n, 0, 0)), "label": n} for n in range(3)]
        >>> cached = cache_images(rows, tempfile.mkdtemp(), size=(8, 4))
        >>> cached[2]["image"].size, cached[2]["label"]
        ((4, 8), 2)
    """
    check_cached(rows, folder, column, transform)
    check_size(size)
    workers = checked_count("workers", workers, "0 decodes in this process.", rule="be at least 0", least=0)
    skip_unreadable, progress = checked_flag("skip_unreadable", skip_unreadable), checked_flag("progress", progress)
    sources = ImageSources(rows, column, size)
    if len(sources) == 0:
        raise ArgumentError("rows", "hold at least one row", 0, "Nothing would be cached.")
    folder, key = Path(folder), sources.digest()
    finished = (folder / MANIFEST).exists() and _begin(folder, key)["done"] == len(sources)
    try:
        if not finished:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / LOCK):
                manifest = _begin(folder, key)
                if manifest["done"] < len(sources):
                    _decode(sources, folder, manifest, workers, skip_unreadable, progress)
    except UnreadableError:
        raise
    except OSError as error:
        remedy = "Check space and rights, and call cache_images again; it goes on where it stopped."
        raise CheckpointError(folder, f"could not be written ({error})", remedy) from error
    return CachedImages(rows, folder, column=column, transform=transform)


def _begin(folder: Path, key: str) -> dict[str, Any]:
    """The manifest of what is there already, or a new one."""
    if (folder / MANIFEST).exists():
        manifest = _read_manifest(folder)
        if manifest["key"] != key:
            raise CheckpointError(
                folder,
                "holds images that were made from other files, in another order or for another size",
                "Delete it, or give another folder.",
            )
        return manifest
    for name in (INDEX, PIXELS):
        (folder / name).touch()
    manifest = {"version": VERSION, "key": key, "done": 0, "bytes": 0, "unreadable": {}}
    _write_manifest(folder, manifest)
    return manifest


def _decode(
    sources: ImageSources, folder: Path, manifest: dict[str, Any], workers: int, skip_unreadable: bool, progress: bool
) -> None:
    """Append from where the manifest says to the end."""
    _check_files(folder, manifest, exactly=False)
    start = manifest["done"]
    loader = DataLoader(
        sources, batch_size=None, sampler=range(start, len(sources)), num_workers=workers, collate_fn=_as_it_is
    )
    bar = tqdm(loader, total=len(sources), initial=start, disable=not progress, unit="image", desc="decoding")
    with (folder / PIXELS).open("r+b") as pixels, (folder / INDEX).open("r+b") as index:
        pixels.truncate(manifest["bytes"])  # what was written after the last note may be cut
        index.truncate(24 * start)
        pixels.seek(manifest["bytes"])
        index.seek(24 * start)
        for number, image in enumerate(bar, start=start):
            if image.problem and not skip_unreadable:
                raise UnreadableError(f"row {number} of the data", image.problem)
            if image.problem:
                manifest["unreadable"][str(number)] = image.problem
            # 24 bytes a row, at 24 · row: where its pixels start, and their shape
            index.write(np.array([manifest["bytes"], image.height, image.width], dtype=np.int64).tobytes())
            pixels.write(image.pixels)
            manifest["bytes"] += len(image.pixels)
            manifest["done"] = number + 1
            if manifest["done"] % BLOCK == 0 or manifest["done"] == len(sources):
                for file in (pixels, index):
                    file.flush()
                    os.fsync(file.fileno())
                _write_manifest(folder, manifest)
    if manifest["bytes"] == 0:
        raise UnreadableError("each of the images", next(iter(manifest["unreadable"].values())))


def _write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    write_atomically(folder / MANIFEST, lambda path: path.write_text(json.dumps(manifest), encoding="utf-8"))


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest = parse_json(path, path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(folder, f"holds no cache ({error})", "Make one with cache_images.") from error
    if manifest.get("version") != VERSION:
        raise CheckpointError(path, "is of another format", "Delete the folder and cache the images again.")
    kinds = {"key": str, "done": int, "bytes": int, "unreadable": dict}
    if any(not isinstance(manifest.get(name), kind) for name, kind in kinds.items()):
        raise _damaged(path, "lacks an entry")
    return manifest


def _check_files(folder: Path, manifest: dict[str, Any], *, exactly: bool = True) -> None:
    for name, expected in ((INDEX, 24 * manifest["done"]), (PIXELS, manifest["bytes"])):
        found = (folder / name).stat().st_size if (folder / name).is_file() else -1
        if found < expected or (exactly and found != expected):
            raise _damaged(
                folder / name, f"has {found:,} bytes instead of {expected:,}" if found >= 0 else "is missing"
            )


def _damaged(path: Path, problem: str) -> CheckpointError:
    return CheckpointError(path, problem, f"Delete '{path.parent}' and cache the images again.")


def _as_it_is(item: Any) -> Any:
    return item
