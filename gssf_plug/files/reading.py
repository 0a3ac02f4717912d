"""Reading a folder that anybody may have written. Whatever it holds, the answer is its content or a `CheckpointError`.

    configuration   JSON object of at most 16 MiB and 200,000 values, nested at most 64 deep, no key twice; types are
                    checked by its reader
    tensors         safetensors alone: no pickle is ever opened; a header of at most 16 MiB; shapes, dtypes and the
                    file's length must agree, so memory is in proportion to the bytes on disk, never to a number in them
    modules         names, shapes and dtypes are compared with what the configuration asks for, and numbers must be
                    finite; the module is built on the meta device until then
    other files     that a configuration names: below the folder, see `inside`

Symbolic links are followed, because the Hub's cache is made of them. Devices and pipes are no files to us.
"""

import json
import os
import re
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Self, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from gssf_plug.errors import CheckpointError
from gssf_plug.files.folders import (
    CONFIG_KEY,
    CONFIG_LIMIT_BYTES,
    DIGEST_KEY,
    OWN_DIGEST,
    PARTS_KEY,
    TENSORS_KEY,
    Format,
    is_intact,
    tensors_digest,
    text_digest,
)
from gssf_plug.files.locks import locked

__all__ = ["build_from", "check_tensors", "inside", "load_strictly", "parse_json", "read_folder", "read_tensors"]

HEADER_LIMIT_BYTES = 16 * 2**20  # names and shapes of about 100,000 tensors
DEPTH_LIMIT = 64
VALUES_LIMIT = 200_000  # an adapter of 1,000 layers has 20,000
SAVED = re.compile(r"\.saved-[0-9a-f]{16}")
FREE_ATTEMPTS, ATTEMPTS = 5, 50
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
DAMAGED = "It is damaged or truncated; copy it again."

Built = TypeVar("Built")


def read_folder(folder: str | os.PathLike[str], layout: Format) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration (without its header) and tensors of a folder that `write_folder` wrote.

    Raises:
        CheckpointError: a file is missing, damaged, truncated, too large, of another kind or of a newer format.
    """
    return build_from(folder, layout, lambda config, tensors, _: (config, tensors))


def build_from(
    folder: str | os.PathLike[str], layout: Format, build: Callable[[dict[str, Any], dict[str, Tensor], Path], Built]
) -> Built:
    """What `build` makes of a folder that `write_folder` wrote, all of it from one and the same save.

    Args:
        folder: folder to read. Others may save into it meanwhile; it is then read again.
        layout: kind, version and file names.
        build: function that is given the configuration (without its header), the tensors, and the folder where the
            further parts are, and makes the object.

    Raises:
        CheckpointError: a file is missing, damaged, truncated, too large, of another kind or of a newer format.
    """
    folder = Path(folder)
    for attempt in range(ATTEMPTS):
        # the first tries hold up no writer and need no lock; then the writers are asked to wait
        turn = locked(folder, shared=True) if attempt >= FREE_ATTEMPTS else nullcontext()
        try:
            with turn, _Watch(folder / layout.weights) as watch:
                try:
                    built = build(*_read_once(folder, layout, watch))
                except Exception:
                    if not watch.changed():
                        raise
                else:
                    if not watch.changed():
                        return built
        except TimeoutError as error:
            raise CheckpointError(folder, f"cannot be read ({error})", "Load it when that one is done.") from error
    raise CheckpointError(folder, "was being saved into at every try to read it", "Load it when the others are done.")


class _Watch:
    """Tells whether another save took effect while a folder was read.

    Args:
        weights: the file whose renaming is the switch of a save. It is held open, so that no new file can get the
            number of the old one.
    """

    def __init__(self, weights: Path) -> None:
        self.weights = weights
        self.parts = weights.parent

    def __enter__(self) -> Self:
        self.file = self.weights.open("rb") if self.weights.is_file() else None
        return self

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            self.file.close()

    def changed(self) -> bool:
        """Whether the weights are another file by now, or the parts have come to their own names."""
        if self.file is None:
            return self.weights.is_file()
        try:
            now = self.weights.stat()
        except OSError:
            return True
        then = os.fstat(self.file.fileno())
        # a renamed file is another inode; ours is open, so its number is not given away again
        return (now.st_dev, now.st_ino) != (then.st_dev, then.st_ino) or not self.parts.is_dir()


def _read_once(folder: Path, layout: Format, watch: _Watch) -> tuple[dict[str, Any], dict[str, Tensor], Path]:
    path, weights = folder / layout.config, folder / layout.weights
    text = _read_text(path)
    written = parse_json(path, text)
    if OWN_DIGEST not in written or not is_intact(written):
        _without_header(path, written, layout)  # of another kind, or newer: say that before anything else
    tensors, metadata = read_tensors(weights)
    carried = metadata.get(CONFIG_KEY, text)
    if metadata.get(DIGEST_KEY) != text_digest(carried) or (carried != text and not is_intact(written)):
        raise CheckpointError(
            folder,
            f"holds {layout.config} and {layout.weights} of two different saves (an interrupted or edited one)",
            "Save it again, or take both files from the same copy.",
        )
    # where they differ the copy is of a save that was killed, or is beside us now; the weights say what they are
    config = _without_header(path, written if carried == text else parse_json(path, carried), layout)
    if metadata.get(TENSORS_KEY) not in (None, tensors_digest(tensors)):
        raise CheckpointError(weights, "does not hold the numbers that were saved", DAMAGED)
    parts = metadata.get(PARTS_KEY, "")
    if SAVED.fullmatch(parts) and (folder / parts).is_dir():
        watch.parts = folder / parts
    return config, tensors, watch.parts


def parse_json(path: Path, text: str, *, most: int = VALUES_LIMIT) -> dict[str, Any]:
    """The JSON object in `text`.

    Args:
        path: file that the text came from, for the error.
        text: the JSON text.
        most: number of values that it may hold; default 200,000. Each takes some fifty times the memory of its text.

    Raises:
        CheckpointError: the text is no JSON or no object, holds a key twice, is nested too deep, or holds too many
            values; the message names `path`.
    """
    # counted before it is parsed: each value is announced by one of these
    if text.count(",") + text.count("[") + text.count("{") > most:
        raise CheckpointError(path, f"holds more than {most:,} values", "It is no configuration of ours.")
    try:
        found = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        problem = "it is nested too deep" if isinstance(error, RecursionError) else error
        raise CheckpointError(path, f"is not valid JSON ({problem})", DAMAGED) from None
    if not isinstance(found, dict):
        raise CheckpointError(path, f"holds no JSON object but a {type(found).__name__}", DAMAGED)
    if _deeper_than(found, DEPTH_LIMIT):
        raise CheckpointError(path, f"is not valid JSON (it is nested deeper than {DEPTH_LIMIT})", DAMAGED)
    return found


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a safetensors file, and its metadata.

    Raises:
        CheckpointError: the file is missing, damaged or truncated, or its header is too large.
    """
    _check_file(path)
    try:
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
        if header > HEADER_LIMIT_BYTES:
            problem = f"has a header of {header:,} bytes, above {HEADER_LIMIT_BYTES:,}"
            raise CheckpointError(path, f"is no whole safetensors file of ours: it {problem}", DAMAGED)
        with safe_open(path, framework="pt") as opened:
            metadata = dict(opened.metadata() or {})
            return {name: opened.get_tensor(name) for name in opened.keys()}, metadata  # noqa: SIM118
    except (SafetensorError, OSError, RuntimeError, ValueError, TypeError, AttributeError, OverflowError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(path, f"is no whole safetensors file ({error})", DAMAGED) from None


def inside(folder: str | os.PathLike[str], name: Any) -> Path:
    """The path of a file that a configuration names, below `folder`.

    Raises:
        CheckpointError: the name is no text, an absolute path, or one with "..", a backslash, a drive or a NUL in it.
    """
    safe = isinstance(name, str) and name and not set(name) & {"\0", "\\"} and not PureWindowsPath(name).drive
    if not safe or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise CheckpointError(
            folder, f"names a file outside itself, {str(name)[:100]!r}", "Do not trust it; save it again."
        )
    return Path(folder) / name


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Put `tensors` into `module`: every key, every shape, finite numbers, nothing beyond; saved dtypes are kept.

    The module may be on the meta device.

    Raises:
        CheckpointError: a key is missing or unknown, or a tensor has another shape or dtype or is not finite. The
            message names the first one; `module` is untouched.
    """
    check_tensors(module.state_dict(), tensors, path)
    for name, tensor in sorted(tensors.items()):
        if not bool(tensor.isfinite().all()):
            remedy = "Its training diverged; go back to an earlier save."
            raise CheckpointError(path, f"holds NaN or infinity in '{name}'", remedy)
    module.load_state_dict(dict(tensors), strict=True, assign=True)


def check_tensors(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Raise `CheckpointError` where `tensors` have not the names, shapes and kinds of `expected`, naming the first.

    Any of float16, bfloat16, float32 and float64 may stand for another; other dtypes must be equal.
    """
    missing = sorted(expected.keys() - tensors.keys())
    unknown = sorted(tensors.keys() - expected.keys())
    remedy = "It was saved from another configuration or is damaged; save it again."
    if missing:
        raise CheckpointError(path, f"lacks the tensor '{missing[0]}' ({len(missing)} missing)", remedy)
    if unknown:
        raise CheckpointError(path, f"has an unknown tensor '{unknown[0]}' ({len(unknown)} unknown)", remedy)
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            got, right = tuple(tensor.shape), tuple(expected[name].shape)
            raise CheckpointError(path, f"has '{name}' in shape {got} where {right} is needed", remedy)
        if tensor.dtype != expected[name].dtype and not {tensor.dtype, expected[name].dtype} <= set(FLOATS):
            kinds = f"{tensor.dtype} where {expected[name].dtype} is needed"
            raise CheckpointError(path, f"has '{name}' in {kinds}", remedy)


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise CheckpointError(path, "is missing", "Give a folder written by save_pretrained.")


def _read_text(path: Path) -> str:
    _check_file(path)
    if path.stat().st_size > CONFIG_LIMIT_BYTES:
        raise CheckpointError(path, f"is larger than {CONFIG_LIMIT_BYTES} bytes", "It is no configuration of ours.")
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise CheckpointError(path, f"cannot be read ({error})", "Check its permissions.") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in found if keys.count(key) > 1)!r} stands there twice")
    return found


def _deeper_than(value: Any, limit: int) -> bool:
    layer = [value]
    for _ in range(limit):
        layer = [child for part in layer for child in _children(part)]
        if not layer:
            return False
    return True


def _children(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []


def _without_header(path: Path, config: dict[str, Any], layout: Format) -> dict[str, Any]:
    kind, version = config.get("format"), config.get("format_version")
    if kind != layout.kind:
        raise CheckpointError(
            path,
            f"is not of the kind '{layout.kind}' (its format is {str(kind)[:100]!r})",
            "Give a folder that the same class saved.",
        )
    if type(version) is not int or version < 1:
        raise CheckpointError(path, f"has no valid format version (got {str(version)[:100]!r})", DAMAGED)
    if version > layout.version:
        raise CheckpointError(
            path,
            f"is in format version {version}, and this gssf-plug reads up to {layout.version}",
            "Upgrade gssf-plug to load it.",
        )
    return {key: value for key, value in config.items() if key not in ("format", "format_version", OWN_DIGEST)}
