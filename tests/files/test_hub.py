"""What Hugging Face users expect of a module: saved, loaded, uploaded; where its folder is looked for."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelHubMixin
from huggingface_hub.errors import LocalEntryNotFoundError

from gssf_plug import GSSFMetric
from gssf_plug.errors import ArgumentError, CheckpointError
from gssf_plug.files import hub
from gssf_plug.files.folders import Format
from gssf_plug.files.hub import locate


@pytest.fixture
def metric() -> GSSFMetric:
    metric = GSSFMetric(8, block_size=4)
    torch.nn.init.normal_(metric.structures["block_diagonal"].weight)
    return metric


@pytest.fixture
def folder(metric: GSSFMetric, tmp_path: Path) -> Path:
    metric.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_push_uploads_what_save_writes(metric: GSSFMetric, monkeypatch: pytest.MonkeyPatch) -> None:
    uploaded: dict[str, object] = {}

    class Hub:
        def __init__(self, token: str | None = None) -> None: ...

        def create_repo(self, repo_id: str, **options: object) -> object:
            return type("Repo", (), {"repo_id": repo_id})

        def upload_folder(self, *, repo_id: str, folder_path: Path, **options: object) -> str:
            uploaded["repo_id"], uploaded["message"] = repo_id, options["commit_message"]
            uploaded["metric"] = GSSFMetric.from_pretrained(folder_path)
            return "commit-url"

    monkeypatch.setattr("gssf_plug.files.uploads.HfApi", Hub)
    assert metric.push_to_hub("me/metric") == "commit-url"
    assert uploaded["repo_id"] == "me/metric"
    usual = inspect.signature(ModelHubMixin.push_to_hub).parameters["commit_message"].default
    assert uploaded["message"] == usual
    metric.push_to_hub("me/metric", commit_message="Better features")
    assert uploaded["message"] == "Better features"
    assert torch.equal(uploaded["metric"].matrix(), metric.matrix())


def test_save_with_push(metric: GSSFMetric, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[tuple[str, dict[str, object]]] = []
    monkeypatch.setattr(GSSFMetric, "push_to_hub", lambda self, repo_id, **options: calls.append((repo_id, options)))
    metric.save_pretrained(tmp_path / "named", push_to_hub=True, private=True)
    assert calls == [("named", {"private": True})]


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is no folder. Give a folder that was saved, or a Hub id"):
        GSSFMetric.from_pretrained(tmp_path / "nowhere")


def test_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CheckpointError, match="is neither a folder nor to be had from the Hub"):
        GSSFMetric.from_pretrained("nobody/nothing", local_files_only=True)


def test_misspelt_option_is_not_swallowed(folder: Path) -> None:
    with pytest.raises(ArgumentError, match="`block_sise` must be an option of from_pretrained"):
        GSSFMetric.from_pretrained(folder, block_sise=4)


def test_a_folder_is_its_own_place(folder: Path) -> None:
    assert locate(folder, GSSFMetric.file_format) == folder
    assert locate(str(folder), GSSFMetric.file_format) == folder
    assert not GSSFMetric.from_pretrained(folder).training


def test_two_files_are_downloaded_or_the_whole_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def one(name: str, file: str, **options: Any) -> str:
        asked.append((name, file, options))
        return str(tmp_path / file)

    monkeypatch.setattr(hub, "hf_hub_download", one)
    monkeypatch.setattr(hub, "snapshot_download", lambda name, **options: str(tmp_path / "all" / name))
    layout = Format("kind", config="c.json", weights="w.safetensors")
    assert locate("me/metric", layout, revision="v1") == tmp_path
    assert asked == [("me/metric", "c.json", {"revision": "v1"}), ("me/metric", "w.safetensors", {"revision": "v1"})]
    assert locate("me/metric", Format("kind", whole=True)) == tmp_path / "all" / "me" / "metric"


@pytest.mark.parametrize("name", ["./metric", "/no/where", "~/metric", "metric", "a/b/c"])
def test_what_is_no_hub_id_is_never_asked_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "hf_hub_download", lambda *_, **__: pytest.fail("the Hub was asked"))
    with pytest.raises(CheckpointError, match=f"'{name}' is no folder. Give a folder that was saved, or a Hub id"):
        locate(name, GSSFMetric.file_format)


@pytest.mark.parametrize("error", [LocalEntryNotFoundError("not in the cache"), OSError("no route")])
def test_what_the_hub_raises_is_ours(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(hub, "hf_hub_download", refuse)
    message = rf"'me/metric' is neither a folder nor to be had from the Hub \({type(error).__name__}\). Check the spell"
    with pytest.raises(CheckpointError, match=message):
        locate("me/metric", GSSFMetric.file_format)


@pytest.mark.parametrize("name", ["", None, 3])
@pytest.mark.bad_input
def test_no_folder_to_save_in_is_named(name: Any, metric: GSSFMetric) -> None:
    with pytest.raises(ArgumentError, match="`save_directory` must"):
        metric.save_pretrained(name)
