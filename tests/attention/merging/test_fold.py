"""Merging: the same outputs from plain weights, a truthful report, an exact way back, and refusals with reasons."""

import warnings
from pathlib import Path

import pytest
import torch
from attention.patching import hidden, perturb
from tools.tiny import tiny_model
from torch import Tensor, nn
from transformers import BertModel, Gemma3TextConfig, Gemma3TextModel, LlamaForCausalLM, Qwen3Model

from gssf_plug.attention import AttentionPatch, patch_attention
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_unmerge_is_exact(bert: BertModel, ids: Tensor, dtype: torch.dtype) -> None:
    bert.to(dtype)
    weights = {name: value.clone() for name, value in bert.state_dict().items()}
    patch = patch_attention(bert, block_size=4)
    perturb(patch)
    with torch.no_grad():
        next(patch.parameters())[0] = 0.0  # a factor of zero: nothing that divides could come back
    patched = hidden(bert, ids)
    patch.merge()
    patch.unmerge()
    assert torch.equal(hidden(bert, ids), patched)
    patch.remove()
    assert all(torch.equal(value, weights[name]) for name, value in bert.state_dict().items())


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


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_is_refused_and_nothing_changes(bert: BertModel, ids: Tensor, value: float) -> None:
    patch = patch_attention(bert, block_size=4)
    perturb(patch)
    with torch.no_grad():
        list(patch.parameters())[-1].view(-1)[0] = value
    weights = {name: tensor.clone() for name, tensor in bert.state_dict().items()}
    with pytest.raises(ArgumentError, match=r"'encoder.layer.1.attention.self' \(1 of 2 layers\).*NaN or infinite"):
        patch.merge()
    assert not patch.merged
    assert all(torch.equal(t.nan_to_num(), weights[name].nan_to_num()) for name, t in bert.state_dict().items())


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


def test_partial_merges_what_folds(qwen: Qwen3Model, ids: Tensor) -> None:
    patch = patch_attention(qwen, terms=("diagonal",))
    perturb(patch)
    with torch.no_grad():
        first = patch.layers["layers.0.self_attn"].metric_layer.metric()
        first.structures["diagonal"].weight.fill_(1.5)  # the same for all heads
    patched = hidden(qwen, ids)
    report = patch.merge(partial=True)
    assert [layer.name for layer in report.layers] == ["layers.0.self_attn"]
    assert list(report.refused) == ["layers.1.self_attn"]
    torch.testing.assert_close(hidden(qwen, ids), patched, atol=1e-5, rtol=1e-5)


def test_tied_weights_are_refused(bert: BertModel) -> None:
    first, second = (layer.attention.self.query for layer in bert.encoder.layer)
    second.weight = first.weight
    patch = patch_attention(bert, block_size=4)
    perturb(patch)
    with pytest.raises(ArgumentError, match="its weight is shared"):
        patch.merge()


def test_states_that_do_not_go_together(bert: BertModel, ids: Tensor) -> None:
    before = hidden(bert, ids)
    patch = patch_attention(bert, block_size=4)
    perturb(patch)
    with pytest.raises(ArgumentError, match="be merged to be unmerged"):
        patch.unmerge()
    patch.disable()
    with pytest.raises(ArgumentError, match="be enabled to be merged"):
        patch.merge()
    patch.enable()
    patch.merge()
    merged = hidden(bert, ids)
    for call, name in ((patch.merge, "merged again"), (patch.remove, "removed")):
        with pytest.raises(ArgumentError, match=f"be unmerged to be {name}, but got a merged one. Call patch.unmerge"):
            call()
    with patch.disabled():
        assert torch.equal(hidden(bert, ids), before)
    assert torch.equal(hidden(bert, ids), merged)


def test_weights_trained_while_merged_are_never_overwritten(bert: BertModel, ids: Tensor) -> None:
    patch = patch_attention(bert, block_size=4)
    perturb(patch)
    patch.merge()
    weight = bert.encoder.layer[1].attention.self.query.weight
    with torch.no_grad():
        weight[0, 0] += 1.0
    trained = hidden(bert, ids)
    rule = "find the weights as it left them to be {}.*, but got other values in 'encoder.layer.1.attention.self.query"
    for call, action in ((patch.disable, "enabled or disabled while merged"), (patch.unmerge, "unmerged")):
        with pytest.raises(ArgumentError, match=rule.format(action)):
            call()
    with pytest.raises(ArgumentError, match=rule.format("enabled or disabled")), patch.disabled():
        raise AssertionError("the context was entered")
    assert torch.equal(hidden(bert, ids), trained)
    assert patch.merged
    with torch.no_grad():
        weight[0, 0] -= 1.0
        weight.copy_(patch.layers["encoder.layer.1.attention.self"].fold.new[weight])
    patch.unmerge()


def test_weights_trained_while_disabled_are_kept(bert: BertModel, ids: Tensor) -> None:
    patch = patch_attention(bert, block_size=4)
    perturb(patch)
    patch.merge()
    patch.disable()
    with torch.no_grad():
        bert.encoder.layer[0].attention.self.query.weight.mul_(2.0)
    trained = hidden(bert, ids)
    with pytest.raises(ArgumentError, match=r"Keep them, and fold anew: patch.unmerge\(\), patch.enable\(\)"):
        patch.enable()
    assert torch.equal(hidden(bert, ids), trained)
    patch.unmerge()
    assert torch.equal(hidden(bert, ids), trained)
    patch.enable()
    patched = hidden(bert, ids)
    patch.merge()
    torch.testing.assert_close(hidden(bert, ids), patched, atol=1e-5, rtol=1e-5)


def test_what_was_merged_last_is_unmerged_first(bert: BertModel, ids: Tensor) -> None:
    before = hidden(bert, ids)
    first = patch_attention(bert, block_size=4)
    perturb(first)
    first.merge()
    second = patch_attention(bert, block_size=4)
    perturb(second)
    second.merge()
    both = hidden(bert, ids)
    with pytest.raises(ArgumentError, match="If another handle merged since, unmerge that one first"):
        first.unmerge()
    assert torch.equal(hidden(bert, ids), both)
    for patch in (second, first):
        patch.unmerge()
        patch.remove()
    assert torch.equal(hidden(bert, ids), before)


def test_weights_that_were_replaced_while_merged_are_missed(bert: BertModel) -> None:
    state = {name: value.clone() for name, value in bert.state_dict().items()}
    patch = patch_attention(bert, block_size=4)
    perturb(patch)
    patch.merge()
    bert.load_state_dict(state, assign=True)
    with pytest.raises(ArgumentError, match="to be unmerged, but got another parameter at 'encoder.layer.0.attention"):
        patch.unmerge()


def test_a_merged_model_may_change_its_dtype(bert: BertModel, ids: Tensor) -> None:
    bert.to(torch.bfloat16)
    before = bert.encoder.layer[0].attention.self.query.weight.float().clone()
    patch = patch_attention(bert, block_size=4)
    perturb(patch)
    patch.merge()
    bert.float()
    patch.unmerge()
    assert torch.equal(bert.encoder.layer[0].attention.self.query.weight, before)


def test_a_removed_patch_has_nothing_left(bert: BertModel, ids: Tensor) -> None:
    before = hidden(bert, ids)
    patch, other = patch_attention(bert, block_size=4), AttentionPatch(bert)
    patch.freeze_base()
    patch.remove()
    bert.requires_grad_(False)
    patch.remove()
    other.remove()
    assert not any(parameter.requires_grad for parameter in bert.parameters())  # flags come back once
    calls = (patch.merge, patch.summary, lambda: list(patch.parameters()), lambda: patch.set_adapter("default"))
    for call in (*calls, lambda: patch.save_pretrained("nowhere")):
        with pytest.raises(ArgumentError, match="`patch` must be in the model, but got a removed one. Call patch_att"):
            call()
    with pytest.raises(ArgumentError, match="be merged to be unmerged"):
        patch.unmerge()
    with patch.disabled():
        assert torch.equal(hidden(bert, ids), before)


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
