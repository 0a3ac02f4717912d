"""A retrieval model as a folder: every part in the form that its own library reads.

    config.json          what the model is made of, versions, and a SHA-256 of every other file of ours
    model.safetensors    poolings, projections, and parts of unknown classes
    image_tower.encoder/ text_tower.encoder/ encoder/ …    models of transformers, loadable by transformers alone
    metric/              GSSFMetric's own files
    processor.tokenizer/ …   tokenizer and image processor, by their own save_pretrained
    README.md            the model card; one that is already there is kept, since people edit cards

Promises: everything is written to a temporary folder beside and then renamed file by file, the configuration last, so a
full disk leaves the earlier files whole, and a crash between two renames is found at load, not trusted. Loading is
strict: kind, version, every file's digest, every tensor; the first that does not fit is named. Nothing is unpickled.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers.utils import PushToHubMixin

import gssf_plug
from gssf_plug.errors import ArgumentError, CheckpointError
from gssf_plug.files import (
    CardFacts,
    Format,
    HubModule,
    check_tensors,
    inside,
    locate,
    read_folder,
    render_card,
    write_folder,
)

__all__ = ["PublishedModel"]

PROCESSOR = "processor."
STAGING = ".saving-"
CARD = "README.md"


class PublishedModel(nn.Module, HubModule, library_name="gssf-plug"):
    """`save_pretrained`, `from_pretrained` and `push_to_hub` for a model of parts.

    Subclasses set `published`: attributes of the model and the constructor arguments that they come from.
    """

    file_format: ClassVar[Format] = Format("gssf-plug/retrieval", whole=True)
    published: ClassVar[dict[str, str]] = {}
    processors: dict[str, Any]

    def write_files(self, folder: Path, facts: CardFacts | None = None) -> None:
        """Write every part; see the module.

        Raises:
            ArgumentError: a part that is neither a module nor a function of ours, or a class without `published`.
            CheckpointError: where the disk refuses; what was saved there before is still whole.
        """
        from gssf_plug.retrieval.models.part_descriptions import (
            Describer,  # it knows towers and models, which know this module
        )

        if not self.published:
            raise ArgumentError(
                "model",
                "be a model of gssf_plug.retrieval, or set `published`, to be saved",
                type(self).__name__,
                "Map attributes to constructor arguments, as TwoTower does.",
            )
        describer = Describer()
        described = {place: describer.part(getattr(self, place), place) for place in self.published}
        config = {
            "model": type(self).__name__,
            "parts": described,
            "processors": {place: type(part).__name__ for place, part in self.processors.items()},
            "versions": _versions(),
        }
        before = _listed_files(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for leftover in folder.glob(f"{STAGING}*"):  # of a save that was killed
                shutil.rmtree(leftover)
            with tempfile.TemporaryDirectory(prefix=STAGING, dir=folder) as name:
                staged = Path(name)
                for place, part in describer.folders.items():
                    part.save_pretrained(staged / place)
                for place, processor in self.processors.items():
                    processor.save_pretrained(staged / f"{PROCESSOR}{place}")
                files = {str(path): _digest(staged / path) for path in _files(staged)}
                tensors = describer.kept_here(self.state_dict())
                write_folder(staged, self.file_format, {**config, "files": files}, tensors, self.model_card(facts))
                _publish(staged, folder, self.file_format, keep_card=facts is None)
            for stale in before - files.keys():
                inside(folder, stale).unlink(missing_ok=True)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                folder, f"could not be written ({error})", "Check space and rights; earlier files are untouched."
            ) from error

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        parts: Mapping[str, nn.Module] | None = None,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
    ) -> Self:
        """Load what `save_pretrained` wrote, from a folder or the Hub, in evaluation mode and strictly.

        Args:
            pretrained_model_name_or_path: folder, or Hub id such as "user/name".
            parts: modules of classes that gssf-plug cannot build, by place, such as {"image_tower.encoder": my_cnn};
                their weights come from the folder.
            force_download: as in huggingface_hub, like the four that follow.
            token: access token.
            cache_dir: where downloads are kept.
            local_files_only: never ask the network.
            revision: branch, tag or commit.

        Raises:
            CheckpointError: the folder is missing, damaged, of another class or of a newer format, or a part is needed.
            ArgumentError: a part that the model does not ask for.
        """
        hub = {
            "force_download": force_download,
            "token": token,
            "cache_dir": cache_dir,
            "local_files_only": local_files_only,
            "revision": revision,
        }
        folder = locate(pretrained_model_name_or_path, cls.file_format, **hub)
        config, tensors = read_folder(folder, cls.file_format)
        _check_config(config, cls, folder)
        for path, digest in config["files"].items():
            _check_file(inside(folder, path), digest)
        return cls._rebuilt(config, tensors, folder, parts or {}).eval()

    @classmethod
    def _rebuilt(
        cls, config: dict[str, Any], tensors: dict[str, Tensor], folder: Path, given: Mapping[str, nn.Module]
    ) -> Self:
        from gssf_plug.retrieval.models.part_descriptions import Builder, Describer

        builder, describer = Builder(folder, given), Describer()
        values = {name: builder.part(config["parts"][place], place) for place, name in cls.published.items()}
        unasked = sorted(given.keys() - builder.asked)
        if unasked:
            remedy = f"It asks for {sorted(builder.asked) or 'none'}."
            raise ArgumentError("parts", f"hold parts that '{folder}' asks for", repr(unasked[0]), remedy)
        processors = {
            name: _processor(kind, inside(folder, f"{PROCESSOR}{name}")) for name, kind in config["processors"].items()
        }
        model = cls(**values, processors=processors)
        for place in cls.published:
            describer.part(getattr(model, place), place)
        check_tensors(describer.kept_here(model.state_dict()), tensors, folder)
        model.load_state_dict(tensors, strict=False, assign=True)
        return model

    def model_card(self, facts: CardFacts | None = None) -> str:
        """Front matter, the parts, their data and measures as far as `facts` say, how to load them."""
        kind, count = type(self).__name__, sum(parameter.numel() for parameter in self.parameters())
        parts = "\n".join(f"- `{place}`: {type(getattr(self, place)).__name__}" for place in self.published)
        about = (
            f"A retrieval model of {count:,} parameters whose features are compared by a learned metric "
            f"(GSSF, IEEE TIP 2024, arXiv 2410.15266), or by cosine where it has none:\n\n{parts}"
        )
        usage = f"from gssf_plug.retrieval import {kind}\n\nmodel = {kind}.from_pretrained(path)"
        return render_card(kind, about, usage, ("metric-learning", "gssf", "retrieval"), facts)


def _files(folder: Path) -> list[Path]:
    """Files below `folder`, relative to it, hidden ones left out."""
    found = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
    return [path for path in found if not any(part.startswith(".") for part in path.parts)]


def _publish(staged: Path, folder: Path, layout: Format, *, keep_card: bool) -> None:
    """Rename every staged file to its place: parts first, weights and configuration last."""
    last = [Path(layout.weights), Path(layout.config)]
    for path in [*(path for path in _files(staged) if path not in last), *last]:
        if keep_card and str(path) == CARD and (folder / path).exists():
            continue
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        os.replace(staged / path, folder / path)


def _listed_files(folder: Path) -> set[str]:
    """Files of parts that an earlier save into `folder` lists; none where there was no such save."""
    try:
        config, _ = read_folder(folder, PublishedModel.file_format)
        return set(config["files"])
    except (CheckpointError, KeyError):
        return set()


def _check_config(config: dict[str, Any], kind: type[PublishedModel], folder: Path) -> None:
    odd = sorted(config.keys() ^ {"model", "parts", "processors", "files", "versions"})
    if odd:
        problem = f"has a configuration with the key '{odd[0]}' {'unknown' if odd[0] in config else 'missing'}"
        raise CheckpointError(folder, problem, "It is damaged, or edited by hand; save it again.")
    for name in ("parts", "processors", "files"):
        entries = config[name]
        plain = name == "parts" or (isinstance(entries, dict) and all(isinstance(v, str) for v in entries.values()))
        if not isinstance(entries, dict) or not plain:
            raise CheckpointError(folder, f"has a configuration whose '{name}' is no table", "It is damaged.")
    if config["model"] != kind.__name__:
        problem = f"holds a {config['model']}, not a {kind.__name__}"
        raise CheckpointError(folder, problem, f"Load it with {config['model']}.")
    if config["parts"].keys() != kind.published.keys():
        odd = sorted(config["parts"].keys() ^ kind.published.keys())
        raise CheckpointError(folder, f"has not the parts of a {kind.__name__} ('{odd[0]}')", "It is damaged.")


def _check_file(path: Path, digest: str) -> None:
    if not path.is_file():
        raise CheckpointError(path, "is missing", "Copy the whole folder, or save the model again.")
    if _digest(path) != digest:
        raise CheckpointError(
            path,
            "is not the file that was saved with this model (damaged, edited, or of another save)",
            "Copy the whole folder again. To use a changed part, load it by itself and build the model from parts.",
        )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _processor(kind: str, path: Path) -> Any:
    """A tokenizer or processor of transformers."""
    found = getattr(transformers, kind, None)
    if not (isinstance(found, type) and issubclass(found, PushToHubMixin)):
        problem = f"holds a {kind}, which transformers {transformers.__version__} does not have"
        raise CheckpointError(path, problem, "Save the model with processors of transformers alone.")
    return cast(Any, found).from_pretrained(path, local_files_only=True)


def _versions() -> dict[str, str]:
    modules = (gssf_plug, torch, transformers)
    return {module.__name__: module.__version__ for module in modules}
