"""The folder that we write: kind, version and file names, and each file by a rename."""

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from gssf_plug.errors import CheckpointError

__all__ = ["DIGEST_KEY", "Format", "text_digest", "write_atomically", "write_folder"]

DIGEST_KEY = "config_sha256"


@dataclass(frozen=True)
class Format:
    """One kind of folder that we write.

    Args:
        kind: what the folder holds, such as "gssf-plug/metric"; stands in its configuration.
        version: newest format version this library writes; it reads every version up to that.
        config: name of the JSON file.
        weights: name of the safetensors file.
        whole: the folder has further parts, so that all of it is taken from the Hub; default False.
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
) -> None:
    """Write `tensors`, `config` and a model card into `folder`, each by a rename.

    Args:
        folder: created where missing.
        layout: kind, version and file names.
        config: JSON-able; format, version and library version are added.
        tensors: written contiguous, on the CPU.
        card: Markdown for README.md.
        replace_card: write the card over one that is already there; default keep that: people edit cards.

    Raises:
        CheckpointError: where the disk refuses; the earlier files are still whole.
    """
    folder = Path(folder)
    header = {"format": layout.kind, "format_version": layout.version}
    text = json.dumps({**header, **config}, indent=2, sort_keys=True) + "\n"
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"format": "pt", DIGEST_KEY: text_digest(text)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / layout.weights, lambda path: save_file(plain, path, metadata=metadata))
        write_atomically(folder / layout.config, lambda path: path.write_text(text, encoding="utf-8"))
        if card is not None and (replace_card or not (folder / "README.md").exists()):
            write_atomically(folder / "README.md", lambda path: path.write_text(card, encoding="utf-8"))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(folder, f"could not be written ({error})", _write_remedy(error)) from error


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write(temporary_path)`, flush it to disk, and rename it to `path`; on failure nothing is left behind.

    A symbolic link at `path` is replaced, what it points to stays: saving into a folder of the Hub's cache spoils none.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def text_digest(text: str) -> str:
    """SHA-256 of a configuration's text, as it stands beside the weights."""
    return hashlib.sha256(text.encode()).hexdigest()


def _write_remedy(error: Exception) -> str:
    full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
    action = "Free some disk space" if full else "Check that the folder exists and is writable"
    return f"{action} and save again; what was there before is untouched."
