"""All layers merged or none, the exact way back, and weights that changed meanwhile never overwritten."""

import pytest
import torch
from attention.patching import hidden, perturb
from torch import Tensor
from transformers import BertModel, Qwen3Model

from gssf_plug.attention import patch_attention
from gssf_plug.errors import ArgumentError


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
