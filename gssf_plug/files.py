"""What we publish: a folder with one safetensors file, one JSON configuration and a model card.

Promises: both files are written whole to temporary names and then renamed, so an interrupted save leaves the earlier
one in place; a folder is read strictly (kind, format version, every key, every shape) and never unpickled. It refuses
other kinds of folder, newer formats, missing, unknown or misshaped tensors. The configuration's digest is kept beside
the weights: a crash exactly between the two renames is found at load, not trusted.
"""

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from huggingface_hub import ModelHubMixin, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from gssf_plug.errors import ArgumentError, CheckpointError

__all__ = [
    "Format",
    "HubModule",
    "load_strictly",
    "locate",
    "read_folder",
    "write_atomically",
    "write_folder",
]

CONFIG_LIMIT_BYTES = 16 * 2**20  # a configuration is a few kB; a larger one is not ours
DIGEST_KEY = "config_sha256"


@dataclass(frozen=True)
class Format:
    """One kind of folder that we write.

    Args:
        kind: what the folder holds, such as "gssf-plug/metric"; stands in its configuration.
        version: newest format version this library writes; it reads every version up to that.
        config: name of the JSON file.
        weights: name of the safetensors file.
    """

    kind: str
    version: int = 1
    config: str = "config.json"
    weights: str = "model.safetensors"


def write_folder(
    folder: str | os.PathLike[str],
    layout: Format,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    card: str | None = None,
) -> None:
    """Write `tensors`, `config` and a model card into `folder`, each by a rename.

    Args:
        folder: created where missing. A card that is already there is kept: people edit cards.
        layout: kind, version and file names.
        config: JSON-able; format, version and library version are added.
        tensors: written contiguous, on the CPU.
        card: Markdown for README.md.

    Raises:
        CheckpointError: where the disk refuses; the earlier files are still whole.
    """
    folder = Path(folder)
    header = {"format": layout.kind, "format_version": layout.version}
    text = json.dumps({**header, **config}, indent=2, sort_keys=True) + "\n"
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"format": "pt", DIGEST_KEY: _digest(text)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / layout.weights, lambda path: save_file(plain, path, metadata=metadata))
        write_atomically(folder / layout.config, lambda path: path.write_text(text, encoding="utf-8"))
        if card is not None and not (folder / "README.md").exists():
            write_atomically(folder / "README.md", lambda path: path.write_text(card, encoding="utf-8"))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(folder, f"could not be written ({error})", _write_remedy(error)) from error


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write(temporary_path)`, flush it to disk, and rename it to `path`; on failure nothing is left behind."""
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


def read_folder(folder: str | os.PathLike[str], layout: Format) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration (without its header) and tensors of a folder that `write_folder` wrote.

    Raises:
        CheckpointError: a file is missing, damaged, truncated, of another kind or of a newer format.
    """
    folder = Path(folder)
    text = _read_config_text(folder / layout.config)
    config = _parse_config(folder / layout.config, text, layout)
    tensors, digest = _read_tensors(folder / layout.weights)
    if digest != _digest(text):
        raise CheckpointError(
            folder,
            f"holds {layout.config} and {layout.weights} of two different saves (an interrupted or edited one)",
            "Save it again, or take both files from the same copy.",
        )
    return config, tensors


def locate(name_or_path: str | os.PathLike[str], layout: Format, **hub: Any) -> Path:
    """The local folder of `name_or_path`: itself where it is a folder, else downloaded from the Hugging Face Hub.

    Args:
        name_or_path: a folder, or a Hub id such as "user/name".
        layout: names of the files that are needed.
        hub: `revision`, `cache_dir`, `force_download`, `token`, `local_files_only` of `hf_hub_download`.
    """
    if os.path.isdir(name_or_path):
        return Path(name_or_path)
    name = os.fspath(name_or_path)
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise CheckpointError(name, "is no folder", "Give a folder that was saved, or a Hub id such as 'user/name'.")
    try:
        config = hf_hub_download(name, layout.config, **hub)
        hf_hub_download(name, layout.weights, **hub)
    except (HfHubHTTPError, EntryNotFoundError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            name,
            f"is neither a folder nor to be had from the Hub ({type(error).__name__})",
            "Check the spelling, the network and your access token.",
        ) from error
    return Path(config).parent


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Put `tensors` into `module`: every key, every shape, nothing beyond; saved dtypes are kept.

    Raises:
        CheckpointError: names the first key that is missing, unknown or of another shape; `module` is untouched.
    """
    expected = module.state_dict()
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
    module.load_state_dict(dict(tensors), strict=True, assign=True)


class HubModule(ModelHubMixin):
    """`save_pretrained`, `from_pretrained` and `push_to_hub` for an `nn.Module`, strict and atomic.

    huggingface_hub's mixin loads with `strict=False`, ignores unknown configuration keys, drops tensor arguments and
    deletes the old configuration before it writes; so both verbs are written anew here and only the upload is its own.
    Subclasses set `file_format` and write `file_config`, `from_files` and `model_card`.
    """

    file_format: ClassVar[Format]

    def file_config(self) -> dict[str, Any]:
        """The constructor's arguments, JSON-able."""
        raise NotImplementedError

    @classmethod
    def from_files(cls, config: dict[str, Any], tensors: dict[str, Tensor], folder: Path) -> Self:
        """The module that `config` and `tensors` describe."""
        raise NotImplementedError

    def model_card(self) -> str:
        """Markdown with the front matter that the Hub reads."""
        raise NotImplementedError

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | os.PathLike[str],
        *,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        config: None = None,
        model_card_kwargs: None = None,
        **push_to_hub_kwargs: Any,
    ) -> str | None:
        """Write weights, configuration and model card; with `push_to_hub=True` upload them too.

        Args:
            save_directory: folder, created where missing; earlier files in it are replaced by rename.
            push_to_hub: upload after saving.
            repo_id: Hub id for the upload; default the folder's name.
            config: always our own; accepted only because the mixin passes it.
            model_card_kwargs: likewise.
            push_to_hub_kwargs: `private`, `token`, `branch`, `commit_message`, … of the mixin's `push_to_hub`.

        Raises:
            CheckpointError: where the disk refuses; what was saved there before is still whole.
        """
        assert isinstance(self, nn.Module)
        del config, model_card_kwargs
        write_folder(save_directory, self.file_format, self.file_config(), self.state_dict(), self.model_card())
        if not push_to_hub:
            return None
        return self.push_to_hub(repo_id or Path(save_directory).name, **push_to_hub_kwargs)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        **unknown: Any,
    ) -> Self:
        """Load what `save_pretrained` wrote, from a folder or the Hub, in evaluation mode and strictly.

        Args:
            pretrained_model_name_or_path: folder, or Hub id such as "user/name".
            force_download: as in huggingface_hub, like the four that follow.
            token: access token.
            cache_dir: where downloads are kept.
            local_files_only: never ask the network.
            revision: branch, tag or commit.
            unknown: nothing more is accepted; a misspelt option is not swallowed.

        Raises:
            CheckpointError: the folder is missing, damaged, foreign or of a newer format.
        """
        if unknown:
            raise ArgumentError(
                next(iter(unknown)),
                "be an option of from_pretrained",
                "an unknown name",
                "The configuration comes from the folder and cannot be overridden.",
            )
        hub = {
            "force_download": force_download,
            "token": token,
            "cache_dir": cache_dir,
            "local_files_only": local_files_only,
            "revision": revision,
        }
        folder = locate(pretrained_model_name_or_path, cls.file_format, **hub)
        config, tensors = read_folder(folder, cls.file_format)
        module = cls.from_files(config, tensors, folder)
        assert isinstance(module, nn.Module)
        return module.eval()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _write_remedy(error: Exception) -> str:
    full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
    action = "Free some disk space" if full else "Check that the folder exists and is writable"
    return f"{action} and save again; what was there before is untouched."


def _read_config_text(path: Path) -> str:
    if not path.is_file():
        raise CheckpointError(path, "is missing", "Give a folder written by save_pretrained.")
    if path.stat().st_size > CONFIG_LIMIT_BYTES:
        raise CheckpointError(path, f"is larger than {CONFIG_LIMIT_BYTES} bytes", "It is no configuration of ours.")
    return path.read_text(encoding="utf-8", errors="replace")


def _parse_config(path: Path, text: str, layout: Format) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        raise CheckpointError(
            path, f"is not valid JSON ({error})", "It is damaged or truncated; copy it again."
        ) from None
    kind = config.get("format") if isinstance(config, dict) else None
    if kind != layout.kind:
        raise CheckpointError(
            path,
            f"is not of the kind '{layout.kind}' (its format is {kind!r})",
            "Give a folder that the same class saved.",
        )
    version = config.get("format_version")
    if not isinstance(version, int) or version < 1:
        raise CheckpointError(path, f"has no valid format version (got {version!r})", "It is damaged; copy it again.")
    if version > layout.version:
        raise CheckpointError(
            path,
            f"is in format version {version}, and this gssf-plug reads up to {layout.version}",
            "Upgrade gssf-plug to load it.",
        )
    return {key: value for key, value in config.items() if key not in ("format", "format_version")}


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], str]:
    if not path.is_file():
        raise CheckpointError(path, "is missing", "Give a folder written by save_pretrained.")
    try:
        with safe_open(path, framework="pt") as file:
            digest = (file.metadata() or {}).get(DIGEST_KEY, "")
            return {name: file.get_tensor(name) for name in file.keys()}, digest  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(
            path, f"is no whole safetensors file ({error})", "It is damaged or truncated; copy it again."
        ) from None
