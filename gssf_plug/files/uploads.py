"""Uploads to the Hugging Face Hub, whose options are checked before anything is written or made public."""

import inspect
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from huggingface_hub import HfApi, ModelHubMixin
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from gssf_plug.arguments import check_text, checked_flag, described
from gssf_plug.errors import ArgumentError, near_matches

__all__ = ["check_known", "check_revision", "check_token", "check_upload", "upload"]

FLAGS = ("private", "create_pr")
PATTERNS = ("allow_patterns", "ignore_patterns", "delete_patterns")


def upload(save: Callable[[Path], object], repo_id: str, options: Mapping[str, Any]) -> str:
    """Upload what `save` writes into a folder; gives the commit's address. What cannot be saved makes no repository.

    Args:
        save: writes into an empty folder.
        repo_id: Hub id.
        options: `private` and `token`, and what `HfApi.upload_folder` takes besides.

    Raises:
        ArgumentError: the id is none, or an option is not of its type.
    """
    check_upload(repo_id, options)
    more = dict(options)
    api = HfApi(token=more.pop("token", None))
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        save(folder)
        repo = api.create_repo(repo_id, private=more.pop("private", None), exist_ok=True).repo_id
        return str(api.upload_folder(repo_id=repo, folder_path=folder, **more))


def check_known(options: Mapping[str, object]) -> None:
    """Options of `ModelHubMixin.push_to_hub` alone, by their names.

    Raises:
        ArgumentError: one is unknown; the nearest are named.
    """
    known = [
        name for name in inspect.signature(ModelHubMixin.push_to_hub).parameters if name not in ("self", "repo_id")
    ]
    for name in options:
        if name not in known:
            raise ArgumentError(name, "be an option of push_to_hub", "an unknown name", near_matches(name, known))


def check_upload(repo_id: object, options: Mapping[str, object]) -> None:
    """A Hub id, and options of an upload; None leaves one open.

    Raises:
        ArgumentError: the id is none, or an option is not of its type.
    """
    rule, remedy = "be a Hub id", "Such as 'user/name'."
    check_text("repo_id", repo_id, rule, remedy)
    try:
        validate_repo_id(cast(str, repo_id))
    except HFValidationError as error:
        raise ArgumentError("repo_id", rule, repr(repo_id), remedy) from error
    for name, value in options.items():
        if value is None:
            continue
        if name in FLAGS:
            checked_flag(name, value)
        elif name == "token":
            check_token(value)
        elif name in ("branch", "revision"):
            check_revision(name, value)
        elif name == "commit_message":
            check_text(name, value, "be a text", "Such as 'Better features'.")
        elif name in PATTERNS and not _are_texts(value):
            raise ArgumentError(name, "be a pattern or a list of patterns", described(value), "Such as '*.json'.")


def check_token(value: object) -> None:
    """An access token of the Hub, or whether one is used.

    Raises:
        ArgumentError: the value is something else than None, a truth value or a text.
    """
    if value is not None and not isinstance(value, str | bool):
        rule, remedy = "be None, True, False or a token as text", "True takes the one that is stored on this machine."
        raise ArgumentError("token", rule, described(value), remedy)


def check_revision(name: str, value: object) -> None:
    """A branch, tag or commit, or None.

    Raises:
        ArgumentError: the value is neither a text nor None.
    """
    if value is not None:
        check_text(name, value, "be None or the name of a branch, tag or commit", "Such as 'main'.")


def _are_texts(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(one, str) for one in value))
