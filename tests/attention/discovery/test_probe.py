"""The probe tells true layouts from false ones, and leaves no trace."""

import random

import numpy as np
import pytest
import torch
from attention.patching import hidden
from tools.tiny import tiny_model
from torch import nn
from transformers import BertModel, GPT2Config, GPT2Model, GPTNeoXConfig, GPTNeoXModel

from gssf_plug.attention.discovery.discover import attention_modules, discover

SMALL = {"vocab_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}


@pytest.mark.parametrize(
    ("model", "layout"),
    [
        (GPTNeoXModel(GPTNeoXConfig(hidden_size=32, intermediate_size=40, **SMALL)), "qkv in key_heads group"),
        (GPT2Model(GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=4)), "c_attn as qkv in 1 group"),
    ],
    ids=["q|k|v head by head", "thirds"],
)
def test_two_packings_of_one_width_are_told_apart(model: nn.Module, layout: str) -> None:
    found = discover(model, attention_modules(model), after_norm=True)
    assert not found.refused
    assert all(layout in str(candidate) for candidate in found.proven.values())


def test_query_and_value_swapped_is_disproven(bert: BertModel) -> None:
    for layer in bert.encoder.layer:
        attention = layer.attention.self
        attention.key, attention.value = attention.value, attention.key
        attention.forward = _swapped(attention)
    found = discover(bert, attention_modules(bert), after_norm=True)
    assert not found.proven
    assert all("still depends on the key" in reason or "does not depend" in reason for reason in found.refused.values())


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
    discover(bert, attention_modules(bert), after_norm=True)
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
    found = discover(model, attention_modules(model), after_norm=True)
    assert found.proven
    assert not found.refused
