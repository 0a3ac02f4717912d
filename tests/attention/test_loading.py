"""Strict loading of an adapter: the first mismatch named, the model untouched; beside others, under a head."""

from pathlib import Path

import pytest
import torch
from attention.patching import hidden
from attention.small_models import small_bert
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification, BertModel, LlamaForCausalLM

from gssf_plug.attention import load_attention, patch_attention
from gssf_plug.errors import ArgumentError, CheckpointError


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
