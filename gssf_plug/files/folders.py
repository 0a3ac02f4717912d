"""The folder that we write: kind, version and file names, and the one rename by which a save takes effect.

    model.safetensors   the weights; in their header the configuration that they were saved with, and a digest of both
    config.json         a copy of that configuration, for people and other tools
    README.md           the model card
    encoder/ metric/ …  further parts, each in the form of its own library; the configuration lists their digests

Renaming the weights is the switch. Before it everything stands ready on disk under a hidden name, so a full disk or a
crash leaves the earlier save; after it only renames are left. Further parts also stand complete in a hidden folder
`.saved-…` that the weights name, until each has come to its own name: whoever reads in between, or after a crash in
between, reads them there. No exchange of folders is needed, so this holds on every file system with renames.
"""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from gssf_plug.errors import CheckpointError
from gssf_plug.files.locks import locked
from gssf_plug.files.staging import flush, is_own, named_folder, own_folder, staging

__all__ = [
    "CONFIG_KEY",
    "CONFIG_LIMIT_BYTES",
    "DIGEST_KEY",
    "OWN_DIGEST",
    "PARTS_KEY",
    "TENSORS_KEY",
    "Format",
    "file_digest",
    "is_intact",
    "tensors_digest",
    "text_digest",
    "write_folder",
]

# in the header of the weights
CONFIG_KEY = "config"  # the text of config.json
DIGEST_KEY = "config_sha256"
TENSORS_KEY = "tensors_sha256"
PARTS_KEY = "parts"  # the hidden folder where the parts stand until they have come to their names

OWN_DIGEST = "text_sha256"  # in config.json, of the rest of it: tells an edited one from one of another save
CONFIG_LIMIT_BYTES = 16 * 2**20  # a configuration is a few kB; a larger one is not ours
SAVED = ".saved-"
CARD = "README.md"


@dataclass(frozen=True)
class Format:
    """One kind of folder that we write.

    Args:
        kind: word for what the folder holds, such as "gssf-plug/metric"; it stands in the configuration.
        version: newest version of the format, which this library writes; it reads every version up to that.
        config: name of the JSON file.
        weights: name of the safetensors file.
        whole: True where the folder has further parts, so that all of it is taken from the Hub; default False.
    """

    kind: str
    version: int = 1
    config: str = "config.json"
    weights: str = "model.safetensors"
    whole: bool = False


def write_folder(
    folder: str | os.PathLike[str],
    layout: Format,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    card: str | None = None,
    *,
    replace_card: bool = False,
    parts: Callable[[Path], object] | None = None,
    argument: str = "save_directory",
) -> None:
    """Save `tensors`, `config`, a model card and further parts into `folder`, all at once.

    Args:
        folder: folder to write, which is created where it is missing.
        layout: kind, version and file names.
        config: configuration as JSON can hold it; format, version and digests are added.
        tensors: tensors to write, which are made contiguous and moved to the CPU.
        card: Markdown for README.md.
        replace_card: True writes the card over one that is already there; False (default) keeps that, since people edit
            cards.
        parts: function that writes further files into the folder that it is given. Their digests come into the
            configuration under "files"; files of the save before that are no longer among them are removed. Default
            none.
        argument: name by which the user knows `folder`, for the error.

    Raises:
        ArgumentError: `folder` is no path, or an empty one.
        CheckpointError: the disk refuses; the earlier save is still whole.
    """
    folder = named_folder(argument, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with staging(folder) as staged:
            if parts is not None:
                parts(staged)
                config = {**config, "files": _digests(staged)}
            keep = "" if parts is None else _double(staged, config["files"])
            _stage(staged, layout, config, tensors, keep)
            if card is not None:
                (staged / CARD).write_text(card, encoding="utf-8")
            for path in _files(staged):
                flush(staged / path)
            with locked(folder):
                if card is not None and (folder / CARD).exists() and not replace_card:
                    (staged / CARD).unlink()
                _publish(staged, folder, layout, None if parts is None else config["files"], keep)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(folder, f"could not be written ({error})", _write_remedy(error)) from error


def text_digest(text: str) -> str:
    """SHA-256 of a configuration's text, as it stands beside the weights."""
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def is_intact(config: Mapping[str, Any]) -> bool:
    """Whether a configuration is as some save wrote it; folders of before the digest was added count as such."""
    rest = {key: value for key, value in config.items() if key != OWN_DIGEST}
    return config.get(OWN_DIGEST) in (None, text_digest(_json(rest)))


def _stage(staged: Path, layout: Format, config: Mapping[str, Any], tensors: Mapping[str, Tensor], keep: str) -> None:
    """Configuration and weights; the weights carry the configuration."""
    described = json.loads(_json({"format": layout.kind, "format_version": layout.version, **config}))
    text = _json({**described, OWN_DIGEST: text_digest(_json(described))}) + "\n"
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {
        "format": "pt",
        CONFIG_KEY: text,
        DIGEST_KEY: text_digest(text),
        TENSORS_KEY: tensors_digest(plain),
        **({PARTS_KEY: keep} if keep else {}),
    }
    (staged / layout.config).write_text(text, encoding="utf-8")
    save_file(plain, staged / layout.weights, metadata=metadata)


def _double(staged: Path, files: Mapping[str, str]) -> str:
    """The parts once more, as second names of the same files or else as copies; gives the folder's later name."""
    keep = SAVED + secrets.token_hex(8)
    for path in files:
        second = staged / keep / path
        second.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(staged / path, second)
        except OSError:
            shutil.copyfile(staged / path, second)  # FAT and some network drives have no second names
            flush(second)
    return keep if files else ""


def _publish(staged: Path, folder: Path, layout: Format, listed: Mapping[str, str] | None, keep: str) -> None:
    """Bring everything to its name. Up to the switch the earlier save is whole, from then on the new one."""
    paths = _files(staged)
    _check_ways(folder, paths)
    stale = {} if listed is None else _files_before(folder / layout.config, listed)
    if keep:
        os.rename(staged / keep, folder / keep)
    if not (folder / layout.config).exists():  # nothing whole is there yet, and weights shall not stand alone
        os.replace(staged / layout.config, folder / layout.config)
    os.replace(staged / layout.weights, folder / layout.weights)  # the switch
    try:
        for path in _files(staged):
            os.replace(staged / path, own_folder(folder, Path(path).parent) / Path(path).name)
        for path, digest in stale.items():
            if is_own(folder, path) and file_digest(folder / path) == digest:  # else it is no longer ours
                (folder / path).unlink()
    except OSError as error:
        problem = f"is saved, but not every file of it could be brought to its name ({error})"
        raise CheckpointError(folder, problem, "It loads as it is; for other tools, save it again.") from error
    _flush_folder(folder)
    for number, kept in enumerate(folder.glob(f"{SAVED}*")):
        os.rename(kept, staged / f".{number}")  # gone at once for those who read there, then file by file


def _check_ways(folder: Path, paths: list[str]) -> None:
    """Before anything is renamed: no folder stands where a file shall be, and no file where a folder shall be."""
    for path in paths:
        for way in [folder / parent for parent in Path(path).parents][:-1]:
            if way.exists() and not way.is_symlink() and not way.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(way))
        if (folder / path).is_dir() and not (folder / path).is_symlink():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(folder / path))


def _files_before(path: Path, now: Mapping[str, str]) -> dict[str, str]:
    """Files of parts that the configuration at `path` lists, with their digests, and the new one no longer does."""
    try:
        if not path.is_file() or path.stat().st_size > CONFIG_LIMIT_BYTES:
            return {}
        listed = dict(json.loads(path.read_text(encoding="utf-8"))["files"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # whatever is there is no save of ours
        return {}
    plain = re.compile(r"(?!\.)[^/\\\0:]+(/(?!\.)[^/\\\0:]+)*")  # below the folder, nothing hidden
    return {name: listed[name] for name in listed.keys() - now.keys() if plain.fullmatch(str(name))}


def _files(folder: Path) -> list[str]:
    """Files below `folder`, relative to it, hidden ones left out."""
    found = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
    return [path.as_posix() for path in found if not any(part.startswith(".") for part in path.parts)]


def _digests(folder: Path) -> dict[str, str]:
    return {path: file_digest(folder / path) for path in _files(folder)}


def _json(config: Mapping[str, Any]) -> str:
    return json.dumps(config, indent=2, sort_keys=True)


def _flush_folder(folder: Path) -> None:
    """The renames to disk; some systems cannot flush a folder."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # pragma: no cover - Windows
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


def _write_remedy(error: Exception) -> str:
    full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
    action = "Free some disk space" if full else "Check that the folder exists and is writable"
    return f"{action} and save again; what was there before is untouched."
