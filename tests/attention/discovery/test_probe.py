"""The probe tells true layouts from false ones, and leaves no trace."""

import random

import numpy as np
import pytest
import torch
from attention.patching import hidden
from tools.tiny import tiny_model
from torch import nn
from transformers import BertModel, GPT2Config, GPT2Model, GPTNeoXConfig, GPTNeoXModel

from gssf_plug.attention.discovery.attention_module import AttentionModule, attention_modules
from gssf_plug.attention.discovery.prober import Prober

SMALL = {"vocab_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}


def proven(model: nn.Module) -> dict[str, AttentionModule]:
    found = attention_modules(model)
    Prober(model).prove(found)
    return found


@pytest.mark.parametrize(
    ("model", "layout"),
    [
        (GPTNeoXModel(GPTNeoXConfig(hidden_size=32, intermediate_size=40, **SMALL)), "qkv in key_heads group"),
        (GPT2Model(GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=4)), "c_attn as qkv in 1 group"),
    ],
    ids=["q|k|v head by head", "thirds"],
)
def test_two_packings_of_one_width_are_told_apart(model: nn.Module, layout: str) -> None:
    found = proven(model)
    assert found
    assert all(module.verdict == "proven" and layout in str(module.candidate) for module in found.values())


def test_query_and_value_swapped_is_disproven(bert: BertModel) -> None:
    for layer in bert.encoder.layer:
        attention = layer.attention.self
        attention.key, attention.value = attention.value, attention.key
        attention.forward = _swapped(attention)
    found = proven(bert)
    assert {module.verdict for module in found.values()} == {"refused"}
    assert all("still depends on the key" in m.reason or "does not depend" in m.reason for m in found.values())


def _swapped(attention: nn.Module) -> object:
    """A forward that uses `value` for the keys and `key` for the values."""
    scale = attention.attention_head_size**-0.5

    def forward(hidden_states: torch.Tensor, *arguments: object, **options: object) -> tuple[torch.Tensor, None]:
        parts = (attention.query, attention.value, attention.key)
        q, k, v = (part(hidden_states).unflatten(-1, (4, 8)).transpose(1, 2) for part in parts)
        return ((q @ k.mT * scale).softmax(-1) @ v).transpose(1, 2).flatten(-2), None

    return forward


def test_nothing_is_disturbed(bert: BertModel, ids: torch.Tensor) -> None:
    bert.encoder.layer[0].train()
    before = hidden(bert.eval(), ids)
    bert.encoder.layer[0].train()
    flags = [module.training for module in bert.modules()]
    weights = {name: value.clone() for name, value in bert.state_dict().items()}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    proven(bert)
    assert [module.training for module in bert.modules()] == flags
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]  # noqa: NPY002
    assert all(torch.equal(value, weights[name]) for name, value in bert.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in bert.modules())
    assert torch.equal(hidden(bert.eval(), ids), before)


@pytest.mark.parametrize("model_type", ["bloom", "t5", "swin", "deberta", "deberta-v2", "xlnet", "wav2vec2-conformer"])
def test_position_terms_do_not_mislead(model_type: str) -> None:
    model = tiny_model(model_type)
    verdicts = {module.verdict for module in proven(model).values()}
    assert "proven" in verdicts
    assert "refused" not in verdicts
