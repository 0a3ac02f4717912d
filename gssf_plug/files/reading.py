"""Reading a folder that anybody may have written. Whatever it holds, the answer is its content or a `CheckpointError`.

    configuration   JSON object of at most 16 MiB, nested at most 64 deep, no key twice; types are checked by its reader
    tensors         safetensors alone: no pickle is ever opened; a header of at most 16 MiB; shapes, dtypes and the
                    file's length must agree, so memory is in proportion to the bytes on disk, never to a number in them
    modules         names, shapes and dtypes are compared with what the configuration asks for, and numbers must be
                    finite; the module is built on the meta device until then
    other files     that a configuration names: below the folder, see `inside`

Symbolic links are followed, because the Hub's cache is made of them. Devices and pipes are no files to us.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from gssf_plug.errors import CheckpointError
from gssf_plug.files.folders import DIGEST_KEY, Format, text_digest

__all__ = ["check_tensors", "inside", "load_strictly", "parse_json", "read_folder", "read_tensors"]

CONFIG_LIMIT_BYTES = 16 * 2**20  # a configuration is a few kB; a larger one is not ours
HEADER_LIMIT_BYTES = 16 * 2**20  # names and shapes of about 100,000 tensors
DEPTH_LIMIT = 64
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
DAMAGED = "It is damaged or truncated; copy it again."


def read_folder(folder: str | os.PathLike[str], layout: Format) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration (without its header) and tensors of a folder that `write_folder` wrote.

    Raises:
        CheckpointError: a file is missing, damaged, truncated, too large, of another kind or of a newer format.
    """
    folder = Path(folder)
    text = _read_text(folder / layout.config)
    config = _without_header(folder / layout.config, parse_json(folder / layout.config, text), layout)
    tensors, metadata = read_tensors(folder / layout.weights)
    if metadata.get(DIGEST_KEY) != text_digest(text):
        raise CheckpointError(
            folder,
            f"holds {layout.config} and {layout.weights} of two different saves (an interrupted or edited one)",
            "Save it again, or take both files from the same copy.",
        )
    return config, tensors


def parse_json(path: Path, text: str) -> dict[str, Any]:
    """The JSON object in `text`.

    Raises:
        CheckpointError: no JSON, no object, a key twice, too deep; names `path`.
    """
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
        CheckpointError: missing, damaged, truncated, or with a header that is too large.
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
        CheckpointError: no text, an absolute path, or one with "..", a backslash, a drive or a NUL in it.
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
        CheckpointError: names the first key that is missing, unknown, of another shape or dtype, or not finite;
            `module` is untouched.
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
    return {key: value for key, value in config.items() if key not in ("format", "format_version")}
