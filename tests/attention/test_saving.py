"""The adapter alone on disk: a round trip, strict loading, the first mismatch named, the model untouched."""

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
from transformers import BertConfig, BertForSequenceClassification, BertModel, LlamaForCausalLM, Qwen3Model

from gssf_plug.attention import load_attention, patch_attention
from gssf_plug.errors import ArgumentError, CheckpointError


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    patch = patch_attention(small_bert(), block_size=4)
    torch.manual_seed(1)
    perturb(patch)
    patch.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


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


def test_a_model_with_a_head_takes_the_adapter_of_its_base(saved: Path, ids: Tensor) -> None:
    config = BertConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40)
    patch = load_attention(BertForSequenceClassification(config), saved)
    assert list(patch.layers) == [f"bert.encoder.layer.{n}.attention.self" for n in (0, 1)]
    back = saved.parent / "with_head"
    patch.save_pretrained(back)
    assert list(load_attention(small_bert(), back).layers) == [f"encoder.layer.{n}.attention.self" for n in (0, 1)]


def test_loading_beside_another_adapter(bert: BertModel, saved: Path) -> None:
    patch_attention(bert, block_size=2)
    with pytest.raises(ArgumentError, match="`adapter_name` must be new on this model, but got 'default'"):
        load_attention(bert, saved)
    assert load_attention(bert, saved, adapter_name="saved").adapter_names == ("default", "saved")


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


def test_foreign_adapters_are_refused(saved: Path, llama: LlamaForCausalLM) -> None:
    with pytest.raises(
        CheckpointError, match="was trained on a 'bert' and needs the layer 'encoder.layer.0.attention.self'"
    ):
        load_attention(llama, saved)
    other = BertModel(BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=8, intermediate_size=40
    ))  # fmt: skip
    keys = list(other.state_dict())
    with pytest.raises(CheckpointError, match="has number of heads 4 for 'encoder.layer.0.attention.self' where .* 8"):
        load_attention(other, saved)
    assert list(other.state_dict()) == keys


def test_damaged_adapters_are_refused(saved: Path, bert: BertModel, ids: Tensor) -> None:
    before = hidden(bert, ids)
    (saved / "adapter_model.safetensors").write_bytes((saved / "adapter_model.safetensors").read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="is no whole safetensors file"):
        load_attention(bert, saved)
    (saved / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is not of the kind 'gssf-plug/attention'"):
        load_attention(bert, saved)
    with pytest.raises(CheckpointError, match="is no folder"):
        load_attention(bert, saved / "nowhere")
    assert torch.equal(hidden(bert, ids), before)
    assert not hasattr(bert.encoder.layer[0].attention.self, "gssf")


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
    monkeypatch.setattr("gssf_plug.attention.saving.HfApi", hub)
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
