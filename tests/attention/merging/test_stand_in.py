"""folded(): bare speed inside, nothing changed outside, to the bit, and no silence where it cannot be."""

import copy

import pytest
import torch
from attention.patching import hidden, perturb
from attention.small_models import IDS, small_llama
from torch import nn
from transformers import BertModel, LlamaForCausalLM, Qwen3Model

from gssf_plug.attention import AttentionPatch, patch_attention
from gssf_plug.errors import ArgumentError


@pytest.fixture
def patch(llama: LlamaForCausalLM) -> AttentionPatch:
    patch = patch_attention(llama, block_size=4)
    perturb(patch)
    return patch


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_the_same_outputs_without_hooks_and_back_to_the_bit(llama: LlamaForCausalLM, patch: AttentionPatch) -> None:
    before, state = hidden(llama, IDS), {key: value.clone() for key, value in llama.state_dict().items()}
    with patch.folded() as same, patch.folded():
        assert same.is_folded
        assert hooks(llama) == 0
        torch.testing.assert_close(hidden(llama, IDS), before, atol=1e-4, rtol=1e-4)
        assert all(torch.equal(value, state[key]) for key, value in llama.state_dict().items())
        assert "folded" in patch.summary()
        with patch.disabled():
            assert torch.equal(hidden(llama, IDS), hidden(small_llama(), IDS))
        twin = copy.deepcopy(llama)
        tokens = llama.generate(IDS, max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert not patch.is_folded
    assert torch.equal(hidden(llama, IDS), before)
    assert all(torch.equal(value, state[key]) for key, value in llama.state_dict().items())
    assert torch.equal(llama.generate(IDS, max_new_tokens=5, do_sample=False, pad_token_id=0), tokens)
    assert AttentionPatch(twin).is_folded


@pytest.mark.parametrize("multihead", [False, True])
def test_other_sites(multihead: bool, bert: BertModel) -> None:
    model = nn.TransformerEncoderLayer(32, 4, 40, batch_first=True).eval() if multihead else bert
    inputs = torch.randn(2, 5, 32) if multihead else IDS
    patch = patch_attention(model, block_size=4, **({} if multihead else {"sites": "score"}))
    perturb(patch)
    before = hidden(model, inputs)
    with torch.inference_mode(), patch.folded():
        torch.testing.assert_close(model(inputs)[0], before, atol=1e-4, rtol=1e-4)
    assert torch.equal(hidden(model, inputs), before)


def test_a_layer_that_does_not_fold_is_named(qwen: Qwen3Model) -> None:
    perturb(patch := patch_attention(qwen, block_size=4))
    with pytest.raises(ArgumentError, match=r"'layers.0.self_attn' \(2 of 2 layers\), where .*Go on without"):
        patch.folded().__enter__()
    assert not patch.is_folded


def test_changes_inside_are_found_on_leaving(llama: LlamaForCausalLM, patch: AttentionPatch) -> None:
    query = llama.model.layers[1].self_attn.q_proj
    changes = {
        "base": lambda: query._parameters["weight"].data.mul_(2),
        "folded": lambda: query.weight.data.mul_(2),
        "metric": lambda: next(patch.layers["model.layers.1.self_attn"].metric_layer.parameters()).data.mul_(2),
    }
    for change in changes.values():
        with pytest.raises(ArgumentError, match="other values at 'model.layers.1.self_attn'"), patch.folded():
            change()
        assert not patch.is_folded
        with patch.folded():
            pass


def test_an_error_inside_comes_out_as_it_is(llama: LlamaForCausalLM, patch: AttentionPatch) -> None:
    before = hidden(llama, IDS)
    with pytest.raises(KeyError), patch.folded():
        raise KeyError
    assert torch.equal(hidden(llama, IDS), before)


def test_training_inside_is_an_error(llama: LlamaForCausalLM, patch: AttentionPatch) -> None:
    with patch.folded(), pytest.raises(RuntimeError, match="is for inference"):
        llama(IDS)[0].sum().backward()
    llama.requires_grad_(False)  # nothing could learn: outputs need no gradient, as those of the bare model
    with patch.folded():
        assert not llama(IDS)[0].requires_grad


def test_calls_that_wait_until_the_context_is_left(patch: AttentionPatch) -> None:
    with patch.folded():
        for call in (patch.merge, patch.remove, lambda: patch.set_adapter("default")):
            with pytest.raises(ArgumentError, match="inside folded"):
                call()
