"""A retrieval model as a folder: every part in the form that its own library reads.

    config.json          what the model is made of, versions, and a SHA-256 of every other file of ours
    model.safetensors    poolings, projections, and parts of unknown classes
    image_tower.encoder/ text_tower.encoder/ encoder/ …    models of transformers, loadable by transformers alone;
                         of a patched one the base, and its adapters in gssf/NAME below
    metric/              GSSFMetric's own files
    processor.tokenizer/ …   tokenizer and image processor, by their own save_pretrained
    README.md            the model card; one that is already there is kept, since people edit cards

Promises: a save takes effect by one rename (see `gssf_plug.files.folders`), so a full disk or a crash leaves either the
earlier model or the new one, and whoever loads beside a save gets one of the two. Loading is strict: kind, version, the
whole description before anything is built, every file's digest, every tensor; the first that does not fit is named.
Nothing is unpickled.
"""

import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self, Unpack

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import PushToHubMixin

import gssf_plug
from gssf_plug.adapters import save_model
from gssf_plug.errors import ArgumentError, CheckpointError
from gssf_plug.files import (
    CardFacts,
    Format,
    HubModule,
    HubOptions,
    check_tensors,
    file_digest,
    inside,
    render_card,
    write_folder,
)
from gssf_plug.metric import GSSFMetric
from gssf_plug.retrieval.models.part_descriptions import Builder, Describer
from gssf_plug.retrieval.models.part_schema import check_parts, transformers_class

__all__ = ["PublishedModel"]

PROCESSOR = "processor."


class PublishedModel(nn.Module, HubModule, library_name="gssf-plug"):
    """`save_pretrained`, `from_pretrained` and `push_to_hub` for a model of parts.

    Subclasses set `published`: attributes of the model and the constructor arguments that they come from.
    """

    file_format: ClassVar[Format] = Format("gssf-plug/retrieval", whole=True)
    loading_options: ClassVar[tuple[str, ...]] = ("parts",)
    published: ClassVar[dict[str, str]] = {}
    processors: dict[str, Any]

    def write_files(self, folder: Path, facts: CardFacts | None = None) -> None:
        """Write every part; see the module.

        Raises:
            ArgumentError: a part is neither a module nor a function of ours, or a class has no `published`.
            CheckpointError: the disk refuses; what was saved there before is still whole.
        """
        if not self.published:
            raise ArgumentError(
                "model",
                "be a model of gssf_plug.retrieval, or set `published`, to be saved",
                type(self).__name__,
                "Map attributes to constructor arguments, as TwoTower does.",
            )
        describer = Describer()
        described = {place: describer.part(getattr(self, place), place) for place in self.published}
        described = json.loads(json.dumps(described))
        _check_can_be_loaded(type(self).__name__, described, folder)
        config = {
            "model": type(self).__name__,
            "parts": described,
            "processors": {place: type(part).__name__ for place, part in self.processors.items()},
            "versions": _versions(),
        }

        def write_parts(staged: Path) -> None:
            for place, part in describer.folders.items():
                save_part = part.save_pretrained if isinstance(part, GSSFMetric) else partial(save_model, part)
                save_part(staged / place)
            for place, processor in self.processors.items():
                processor.save_pretrained(staged / f"{PROCESSOR}{place}")

        tensors = describer.kept_here(self.state_dict())
        card = self.model_card(facts)
        write_folder(folder, self.file_format, config, tensors, card, replace_card=facts is not None, parts=write_parts)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        parts: Mapping[str, nn.Module] | None = None,
        **hub: Unpack[HubOptions],
    ) -> Self:
        """Load what `save_pretrained` wrote, from a folder or the Hub, in evaluation mode and strictly.

        Args:
            pretrained_model_name_or_path: a folder, or a Hub id such as "user/name".
            parts: modules of classes that gssf-plug cannot build, by place, such as {"image_tower.encoder": my_cnn};
                their weights come from the folder.
            hub: `force_download`, `token`, `cache_dir`, `local_files_only` and `revision`, as in
                `GSSFMetric.from_pretrained`.

        Raises:
            CheckpointError: the folder is missing, damaged, of another class or of a newer format, or a part is needed.
            ArgumentError: a part is given that the model does not ask for.
        """
        return super().from_pretrained(pretrained_model_name_or_path, parts=parts or {}, **hub)

    @classmethod
    def from_files(
        cls,
        config: dict[str, Any],
        tensors: dict[str, Tensor],
        folder: Path,
        *,
        parts: Mapping[str, nn.Module] | None = None,
    ) -> Self:
        """The model, from `folder` with its parts; everything that it says is looked at before anything is built.

        Args:
            config: configuration without its header.
            tensors: poolings, projections, and parts of unknown classes.
            folder: folder that holds the further parts.
            parts: modules that only the caller can give, as in `from_pretrained`.
        """
        _check_config(config, cls, folder)
        check_parts(cls.__name__, {place: config["parts"][place] for place in cls.published}, folder)
        for path, digest in config["files"].items():
            _check_file(inside(folder, path), digest)
        given = parts or {}
        builder, describer = Builder(folder, given), Describer()
        values = {name: builder.part(config["parts"][place], place) for place, name in cls.published.items()}
        unasked = sorted(given.keys() - builder.asked)
        if unasked:
            remedy = f"It asks for {sorted(builder.asked) or 'none'}."
            raise ArgumentError("parts", f"hold parts that '{folder}' asks for", repr(unasked[0]), remedy)
        processors = {
            name: _processor(kind, inside(folder, f"{PROCESSOR}{name}")) for name, kind in config["processors"].items()
        }
        try:
            model = cls(**values, processors=processors)
        except (ArgumentError, TypeError) as error:
            problem = f"describes parts that do not make a {cls.__name__} ({error})"
            raise CheckpointError(folder, problem, "It is damaged; save it again.") from error
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


def _check_can_be_loaded(model: str, parts: Mapping[str, Any], folder: Path) -> None:
    try:
        check_parts(model, parts, folder)
    except CheckpointError as error:
        remedy = "Write the part as an nn.Module of your own, and give it to from_pretrained(parts=...)."
        raise ArgumentError("model", "be made of parts that could be loaded again", error, remedy) from error


def _check_config(config: dict[str, Any], kind: type[PublishedModel], folder: Path) -> None:
    odd = sorted(config.keys() ^ {"model", "parts", "processors", "files", "versions"})
    if odd:
        problem = f"has a configuration with the key '{odd[0]}' {'unknown' if odd[0] in config else 'missing'}"
        raise CheckpointError(folder, problem, "It is damaged, or edited by hand; save it again.")
    for name in ("parts", "processors", "files", "versions"):
        entries = config[name]
        plain = name == "parts" or (isinstance(entries, dict) and all(isinstance(v, str) for v in entries.values()))
        if not isinstance(entries, dict) or not plain:
            raise CheckpointError(folder, f"has a configuration whose '{name}' is no table", "It is damaged.")
    if config["model"] != kind.__name__:
        name = str(config["model"])[:100]
        raise CheckpointError(folder, f"holds a {name}, not a {kind.__name__}", f"Load it with {name}.")
    if config["parts"].keys() != kind.published.keys():
        odd = sorted(config["parts"].keys() ^ kind.published.keys())
        raise CheckpointError(folder, f"has not the parts of a {kind.__name__} ('{odd[0]}')", "It is damaged.")
    for place, name in config["processors"].items():
        _processor_class(name, inside(folder, f"{PROCESSOR}{place}"))


def _check_file(path: Path, digest: str) -> None:
    if not path.is_file():
        raise CheckpointError(path, "is missing", "Copy the whole folder, or save the model again.")
    if file_digest(path) != digest:
        raise CheckpointError(
            path,
            "is not the file that was saved with this model (damaged, edited, or of another save)",
            "Copy the whole folder again. To use a changed part, load it by itself and build the model from parts.",
        )


def _processor_class(name: str, path: Path) -> Any:
    """A class of tokenizers or processors of transformers."""
    found = transformers_class(name, PushToHubMixin)
    if found is None or issubclass(found, PreTrainedModel):
        problem = f"holds a {name[:100]}, which transformers {transformers.__version__} does not have"
        raise CheckpointError(path, problem, "Save the model with processors of transformers alone.")
    return found


def _processor(name: str, path: Path) -> Any:
    try:
        return _processor_class(name, path).from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except CheckpointError:
        raise
    except Exception as error:  # whatever transformers makes of files that anybody may have written
        problem = f"cannot be loaded ({type(error).__name__}: {error})"
        raise CheckpointError(path, problem, "Save the model again.") from error


def _versions() -> dict[str, str]:
    modules = (gssf_plug, torch, transformers)
    return {module.__name__: module.__version__ for module in modules}
