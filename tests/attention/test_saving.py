"""The adapter alone on disk: a round trip, also while merged, and the upload."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from attention.patching import hidden, perturb
from attention.small_models import small_bert
from safetensors.torch import load_file
from torch import Tensor
from transformers import BertModel, Qwen3Model

from gssf_plug.attention import load_attention, patch_attention
from gssf_plug.errors import ArgumentError


def test_round_trip(bert: BertModel, ids: Tensor, saved: Path) -> None:
    patch = patch_attention(bert, block_size=4)
    torch.manual_seed(1)
    perturb(patch)
    expected = hidden(bert, ids)
    fresh = small_bert()
    load_attention(fresh, saved)
    assert torch.equal(hidden(fresh, ids), expected)
    assert sorted(path.name for path in saved.iterdir()) == [
        "README.md", "adapter_config.json", "adapter_model.safetensors"
    ]  # fmt: skip
    config = json.loads((saved / "adapter_config.json").read_text())
    assert config["base_model_type"] == "bert"
    assert config["layers"]["encoder.layer.0.attention.self"]["layout"] == "query"
    assert "load_attention(model, path)" in (saved / "README.md").read_text()
    assert sum(t.numel() for t in load_file(saved / "adapter_model.safetensors").values()) == 2 * (32 + 32 * 4)


def test_saving_while_merged_and_the_query_norm(qwen: Qwen3Model, ids: Tensor, tmp_path: Path) -> None:
    patch = patch_attention(qwen, terms=("diagonal",), per_head=False)
    perturb(patch)
    patched = hidden(qwen, ids)
    patch.merge()
    patch.save_pretrained(tmp_path)
    patch.unmerge()
    patch.remove()
    patch = load_attention(qwen, tmp_path)
    assert "after q_norm" in patch.summary()
    torch.testing.assert_close(hidden(qwen, ids), patched)


class FakeHub:
    """What `push_to_hub` asks of huggingface_hub's `HfApi`, kept in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls = folder, []

    def __call__(self, **options: object) -> "FakeHub":
        self.calls.append(("HfApi", options))
        return self

    def create_repo(self, repo_id: str, **options: object) -> object:
        self.calls.append(("create_repo", {"repo_id": repo_id, **options}))
        return SimpleNamespace(repo_id=f"me/{repo_id}")

    def upload_folder(self, *, folder_path: Path, **options: object) -> str:
        self.calls.append(("upload_folder", options))
        shutil.copytree(folder_path, self.folder)
        return "https://huggingface.co/me/metric/commit/1"


def test_push_to_hub(bert: BertModel, ids: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole adapter goes up under the name that the Hub gave, with the options that the caller gave."""
    patch = patch_attention(bert, block_size=4)
    perturb(patch)
    expected = hidden(bert, ids)
    hub = FakeHub(tmp_path / "hub")
    monkeypatch.setattr("gssf_plug.files.uploads.HfApi", hub)
    address = patch.push_to_hub("metric", private=True, token="secret", revision="pr", commit_message="first")
    assert address == "https://huggingface.co/me/metric/commit/1"
    assert hub.calls == [
        ("HfApi", {"token": "secret"}),
        ("create_repo", {"repo_id": "metric", "private": True, "exist_ok": True}),
        ("upload_folder", {"repo_id": "me/metric", "revision": "pr", "commit_message": "first"}),
    ]
    assert {path.name for path in hub.folder.iterdir()} >= {"README.md", "adapter_config.json"}
    fresh = small_bert()
    load_attention(fresh, hub.folder)
    assert torch.equal(hidden(fresh, ids), expected)
    with pytest.raises(ArgumentError, match="name an adapter of this model"):
        patch.push_to_hub("metric", adapter_name="other")
    with pytest.raises(ArgumentError, match="`datasets` must hold ids of the Hugging Face Hub"):
        patch.push_to_hub("other", model_card_kwargs={"datasets": ["no id at all"]})
    assert [name for name, _ in hub.calls].count("create_repo") == 1  # what cannot be saved makes no repository
