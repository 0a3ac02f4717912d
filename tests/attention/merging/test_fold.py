"""One layer folded: the same outputs from plain weights, a truthful report, and refusals with reasons."""

import warnings
from pathlib import Path

import pytest
import torch
from attention.patching import hidden, perturb
from tools.tiny import tiny_model
from torch import Tensor, nn
from transformers import BertModel, Gemma3TextConfig, Gemma3TextModel, LlamaForCausalLM, Qwen3Model

from gssf_plug.attention import patch_attention
from gssf_plug.errors import ArgumentError


def test_merged_equals_patched_and_reloads_in_plain_transformers(
    llama: LlamaForCausalLM, ids: Tensor, tmp_path: Path
) -> None:
    keys = list(llama.state_dict())
    patch = patch_attention(llama, block_size=4)
    perturb(patch)
    patched = hidden(llama, ids)
    report = patch.merge()
    assert [layer.into for layer in report.layers] == ["q_proj", "q_proj"]
    assert report.kept > 0.999
    assert "largest change" in str(report)
    assert list(llama.state_dict()) == keys
    assert not any(module._forward_hooks for module in llama.modules())
    torch.testing.assert_close(hidden(llama, ids), patched, atol=1e-5, rtol=1e-5)
    llama.save_pretrained(tmp_path)
    plain = LlamaForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(hidden(plain, ids), patched, atol=1e-5, rtol=1e-5)


def test_the_report_says_what_bfloat16_ate(bert: BertModel) -> None:
    bert.to(torch.bfloat16)
    patch = patch_attention(bert, block_size=4)
    perturb(patch, 1e-3)
    with pytest.warns(UserWarning, match="merging kept only .*% of the learned change at 'encoder.layer"):
        report = patch.merge()
    assert 0.0 < report.kept < 0.8
    patch.unmerge()
    perturb(patch, 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert patch.merge().kept > 0.95


def test_nothing_learned_is_kept_whole(bert: BertModel) -> None:
    report = patch_attention(bert, block_size=4).merge()
    assert report.kept == 1.0
    assert report.layers[0].largest_change == 0.0


def gemma() -> nn.Module:
    config = Gemma3TextConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        intermediate_size=40, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return Gemma3TextModel(config).eval()


def test_a_shared_diagonal_folds_into_the_query_norm(qwen: Qwen3Model, ids: Tensor) -> None:
    for model in (qwen, gemma()):  # their norms multiply by the weight, and by 1 + weight
        for attention in (layer.self_attn for layer in model.layers):
            nn.init.normal_(attention.q_norm.weight)
        patch = patch_attention(model, terms=("diagonal",), per_head=False)
        perturb(patch)
        patched = hidden(model, ids)
        report = patch.merge()
        assert {layer.into for layer in report.layers} == {"q_norm"}
        torch.testing.assert_close(hidden(model, ids), patched, atol=1e-5, rtol=1e-5)
        patch.unmerge()
        assert torch.equal(hidden(model, ids), patched)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"terms": ("diagonal",)}, "each head has a diagonal of its own"),
        ({"terms": ("block_diagonal",), "per_head": False}, "only a diagonal folds"),
    ],
)
def test_what_does_not_fold_into_a_norm_is_refused(
    qwen: Qwen3Model, ids: Tensor, options: dict[str, object], reason: str
) -> None:
    patch = patch_attention(qwen, block_size=4, **options)
    perturb(patch)
    patched = hidden(qwen, ids)
    with pytest.raises(ArgumentError, match=reason):
        patch.merge()
    assert torch.equal(hidden(qwen, ids), patched)


def test_tied_weights_are_refused(bert: BertModel) -> None:
    first, second = (layer.attention.self.query for layer in bert.encoder.layer)
    second.weight = first.weight
    patch = patch_attention(bert, block_size=4)
    perturb(patch)
    with pytest.raises(ArgumentError, match="its weight is shared"):
        patch.merge()


@pytest.mark.parametrize(
    "model_type", ["gpt2", "falcon", "squeezebert", "xlnet", "deepseek_v3", "codegen", "deberta", "jetmoe"]
)
def test_every_kind_of_weight_takes_the_metric(model_type: str, ids: Tensor) -> None:
    model = tiny_model(model_type)
    patch = patch_attention(model, block_size=2)
    perturb(patch)
    patched = hidden(model, ids)
    patch.merge()
    scale = float(patched.abs().max())
    torch.testing.assert_close(hidden(model, ids), patched, atol=2e-5 * scale, rtol=1e-5)


class Heads(nn.Module):
    """A projection that cuts into heads and clips, as Inkling 2 has it: (b, tokens, 16) -> (b, 4, tokens, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).unflatten(-1, (4, 8)).transpose(1, 2).clamp(-1, 1)


class ClippedAttention(nn.Module):
    num_heads = 4

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = Heads(), Heads(), Heads()

    def forward(self, x: Tensor) -> Tensor:
        return ((self.q_proj(x) @ self.k_proj(x).mT).softmax(-1) @ self.v_proj(x)).transpose(1, 2).flatten(-2)


def test_a_projection_that_does_more_than_its_linear_map_is_not_merged() -> None:
    model, x = nn.Sequential(ClippedAttention()), torch.randn(2, 5, 16)
    before = model(x)
    patch = patch_attention(model, block_size=2, example_inputs={"input": x})
    assert "more than that map lies inside of it" in patch.summary()
    perturb(patch)
    patched = model(x)
    assert not torch.allclose(patched, before)
    with pytest.raises(ArgumentError, match="'Heads' makes 8 channels of the 32 of its linear map"):
        patch.merge()
    assert torch.equal(model(x), patched)
