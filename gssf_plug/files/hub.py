"""Modules that are saved, loaded and uploaded the way Hugging Face users expect, strictly and atomically."""

import os
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self, TypedDict, Unpack

from huggingface_hub import ModelHubMixin, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
)
from torch import Tensor, nn

from gssf_plug.arguments import check_path, checked_flag
from gssf_plug.errors import ArgumentError, CheckpointError
from gssf_plug.files.cards import CardFacts
from gssf_plug.files.folders import Format, write_folder
from gssf_plug.files.reading import build_from
from gssf_plug.files.staging import named_folder
from gssf_plug.files.uploads import check_known, check_revision, check_token, check_upload, upload

__all__ = ["HubModule", "HubOptions", "locate"]


class HubOptions(TypedDict, total=False):
    """Where `from_pretrained` looks for what is on the Hub; each as `HubModule.from_pretrained` describes it."""

    force_download: bool
    token: str | bool | None
    cache_dir: str | Path | None
    local_files_only: bool
    revision: str | None


def locate(
    name_or_path: str | os.PathLike[str], layout: Format, *, argument: str = "path", **hub: Unpack[HubOptions]
) -> Path:
    """The local folder of `name_or_path`: itself where it is a folder, else downloaded from the Hugging Face Hub.

    Args:
        name_or_path: a folder, or a Hub id such as "user/name".
        layout: names of the files that are needed.
        argument: name of the caller's argument, for the error.
        hub: options of `hf_hub_download`, such as `revision`.

    Raises:
        ArgumentError: this is no path, or an option is not of its type (those of the Hub are checked for folders, too).
        CheckpointError: there is neither such a folder nor such a repository.
    """
    check_path(argument, name_or_path)
    _check_options(hub)
    if os.path.isdir(name_or_path):
        return Path(name_or_path)
    name = os.fspath(name_or_path)
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise CheckpointError(name, "is no folder", "Give a folder that was saved, or a Hub id such as 'user/name'.")
    try:
        if layout.whole:
            return Path(snapshot_download(name, **hub))
        config = hf_hub_download(name, layout.config, **hub)
        hf_hub_download(name, layout.weights, **hub)
    except (HfHubHTTPError, EntryNotFoundError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise CheckpointError(
            name,
            f"is neither a folder nor to be had from the Hub ({type(error).__name__})",
            "Check the spelling, the network and your access token.",
        ) from error
    return Path(config).parent


def _check_options(hub: HubOptions) -> None:
    for name in ("force_download", "local_files_only"):
        checked_flag(name, hub.get(name, False))
    check_revision("revision", hub.get("revision"))
    check_token(hub.get("token"))
    if hub.get("cache_dir") is not None:
        check_path("cache_dir", hub["cache_dir"])


class HubModule(ModelHubMixin):
    """`save_pretrained`, `from_pretrained` and `push_to_hub` for an `nn.Module`, strict and atomic.

    huggingface_hub's mixin loads with `strict=False`, ignores unknown configuration keys, drops tensor arguments and
    deletes the old configuration before it writes, and makes a repository before it knows whether there is anything to
    upload; so all verbs are written anew here.
    Subclasses set `file_format` and write `file_config`, `from_files` and `model_card`; `loading_options` names what
    their `from_files` takes besides.
    """

    file_format: ClassVar[Format]
    loading_options: ClassVar[tuple[str, ...]] = ()

    def file_config(self) -> dict[str, Any]:
        """The constructor's arguments, JSON-able."""
        raise NotImplementedError

    @classmethod
    def from_files(cls, config: dict[str, Any], tensors: dict[str, Tensor], folder: Path) -> Self:
        """The module that `config` and `tensors` describe; `loading_options` come as further keywords."""
        raise NotImplementedError

    def model_card(self, facts: CardFacts | None = None) -> str:
        """Markdown with the front matter that the Hub reads; `facts` as in `save_pretrained`."""
        raise NotImplementedError

    def write_files(self, folder: Path, facts: CardFacts | None = None) -> None:
        """Write everything into `folder`; a subclass of several parts writes its own."""
        assert isinstance(self, nn.Module)
        write_folder(
            folder,
            self.file_format,
            self.file_config(),
            self.state_dict(),
            self.model_card(facts),
            replace_card=facts is not None,
        )

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | os.PathLike[str],
        *,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        config: None = None,
        model_card_kwargs: CardFacts | None = None,
        **push_to_hub_kwargs: Any,
    ) -> str | None:
        """Write weights, configuration and model card; with `push_to_hub=True` upload them too.

        Args:
            save_directory: folder to write, which is created where it is missing; an earlier save in it is replaced as
                a whole.
            push_to_hub: True uploads the folder after saving. Default False.
            repo_id: hub id of the upload; None (default) takes the name of the folder.
            config: not used: the configuration is always our own. The argument is accepted because the mixin passes it.
            model_card_kwargs: facts for the model card that only you know, as {"data": ..., "measures": {"mAP": 45.6},
                "license": ..., ...}; see `gssf_plug.files.CardFacts`. A card that is already there is kept, unless this
                is given.
            push_to_hub_kwargs: options of the mixin's `push_to_hub`, such as `private`, `token`, `branch` and
                `commit_message`.

        Raises:
            CheckpointError: the disk refuses; what was saved there before is still whole.
            ArgumentError: no folder is named, the card cannot hold a fact, an option is unknown or not of its type, or
                the upload has no Hub id; nothing is written.
        """
        del config
        named_folder("save_directory", save_directory)
        check_known(push_to_hub_kwargs)
        if not checked_flag("push_to_hub", push_to_hub):
            self.write_files(Path(save_directory), model_card_kwargs)
            return None
        repo_id = Path(save_directory).name if repo_id is None else repo_id
        check_upload(repo_id, push_to_hub_kwargs)
        self.write_files(Path(save_directory), model_card_kwargs)
        if model_card_kwargs is not None:
            push_to_hub_kwargs["model_card_kwargs"] = model_card_kwargs
        return self.push_to_hub(repo_id, **push_to_hub_kwargs)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Save into a temporary folder and upload it to the Hub; gives the address of the commit.

        Args:
            repo_id: Hub id, such as "user/name"; the repository is made where there is none.
            options: those of huggingface_hub's `ModelHubMixin.push_to_hub`, such as `private`, `token`, `branch` and
                `commit_message`; `model_card_kwargs` as in `save_pretrained`.

        Raises:
            ArgumentError: the id is none, or an option is unknown or not of its type; nothing is uploaded.
        """
        check_known(options)
        facts, revision = options.pop("model_card_kwargs", None), options.pop("branch", None)
        options.pop("config", None)
        options.setdefault("commit_message", "Push model using huggingface_hub.")  # the mixin's
        check_revision("branch", revision)
        return upload(lambda folder: self.write_files(folder, facts), repo_id, {**options, "revision": revision})

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
            pretrained_model_name_or_path: a folder, or a Hub id such as "user/name".
            force_download: True downloads again what the cache of huggingface_hub holds. Default False.
            token: access token of the Hub, or True for the one that is stored on this machine.
            cache_dir: folder in which downloads are kept; None (default) takes that of huggingface_hub.
            local_files_only: True never asks the network and takes what was downloaded before. Default False.
            revision: branch, tag or commit on the Hub; None (default) takes the main branch.
            unknown: any further option, which is refused, so that a misspelt one is not swallowed.

        Raises:
            ArgumentError: an option is unknown, or not of its type.
            CheckpointError: the folder is missing, damaged, of another kind or of a newer format.
        """
        own = {name: unknown.pop(name) for name in cls.loading_options if name in unknown}
        if unknown:
            raise ArgumentError(
                next(iter(unknown)),
                "be an option of from_pretrained",
                "an unknown name",
                "The configuration comes from the folder and cannot be overridden.",
            )
        hub = HubOptions(
            force_download=force_download,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            revision=revision,
        )
        argument = "pretrained_model_name_or_path"
        folder = locate(pretrained_model_name_or_path, cls.file_format, argument=argument, **hub)
        module = build_from(folder, cls.file_format, partial(cls.from_files, **own))
        assert isinstance(module, nn.Module)
        return module.eval()
