"""The handle of a patched model: what trains, several adapters, off for a while, out without a trace, in copies."""

import copy
import pickle

import pytest
import torch
from attention.patching import hidden, perturb
from torch import Tensor
from transformers import BertModel

from gssf_plug.attention import AttentionPatch, patch_attention
from gssf_plug.errors import ArgumentError


def test_only_the_metric_trains_and_the_base_keeps_its_bits(bert: BertModel, ids: Tensor) -> None:
    patch = patch_attention(bert, block_size=4)
    patch.freeze_base()
    base = {name: p.detach().clone() for name, p in bert.named_parameters() if ".gssf." not in name}
    start = [p.detach().clone() for p in patch.parameters()]
    optimizer = torch.optim.SGD(patch.parameters(), lr=1e-2)
    wanted = torch.randn(2, 7, 32)
    for _ in range(3):
        optimizer.zero_grad()
        (bert(ids)[0] - wanted).square().mean().backward()
        optimizer.step()
    assert all(not torch.equal(p, before) for p, before in zip(patch.parameters(), start, strict=True))
    now = dict(bert.named_parameters())
    assert all(torch.equal(now[name], before) and now[name].grad is None for name, before in base.items())


def test_removed_without_a_trace(bert: BertModel, ids: Tensor) -> None:
    bert.encoder.layer[0].requires_grad_(False)
    before, keys = hidden(bert, ids), list(bert.state_dict())
    flags = [p.requires_grad for p in bert.parameters()]
    patch = patch_attention(bert, block_size=4)
    assert [key for key in bert.state_dict() if ".gssf." not in key] == keys
    perturb(patch)
    patch.freeze_base()
    patch.remove()
    assert torch.equal(hidden(bert, ids), before)
    assert list(bert.state_dict()) == keys
    assert [p.requires_grad for p in bert.parameters()] == flags
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in bert.modules())


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_copies_carry_their_own_metrics(bert: BertModel, ids: Tensor, way: str) -> None:
    patch = patch_attention(bert, block_size=4)
    perturb(patch)
    twin = copy.deepcopy(bert) if way == "deepcopy" else pickle.loads(pickle.dumps(bert))
    here = hidden(bert, ids)
    assert torch.equal(hidden(twin, ids), here)
    other = AttentionPatch(twin)
    perturb(other)
    assert torch.equal(hidden(bert, ids), here)
    assert not torch.equal(hidden(twin, ids), here)
    other.remove()
    assert torch.equal(hidden(bert, ids), here)


def test_disabled_is_exact_nests_and_touches_no_flags(bert: BertModel, ids: Tensor) -> None:
    before = hidden(bert, ids)
    patch = patch_attention(bert, block_size=4)
    perturb(patch)
    patch.freeze_base()
    after, flags = hidden(bert, ids), [(p.requires_grad) for p in bert.parameters()]
    with patch.disabled():
        with patch.disabled():
            assert torch.equal(hidden(bert, ids), before)
        assert torch.equal(hidden(bert, ids), before)
    assert torch.equal(hidden(bert, ids), after)
    assert [(p.requires_grad) for p in bert.parameters()] == flags
    patch.disable()
    with patch.disabled():
        pass
    assert not patch.enabled
    patch.enable()
    assert torch.equal(hidden(bert, ids), after)


def test_disabled_comes_back_after_an_error(bert: BertModel) -> None:
    patch = patch_attention(bert, block_size=4)
    with pytest.raises(KeyError), patch.disabled():
        raise KeyError
    assert patch.enabled


def test_several_adapters_one_active(bert: BertModel, ids: Tensor) -> None:
    patch = patch_attention(bert, block_size=4, adapter_name="first")
    perturb(patch)
    first = hidden(bert, ids)
    patch = patch_attention(bert, terms=("dense",), per_head=False, layers=[0], adapter_name="second")
    assert patch.adapter_names == ("first", "second")
    perturb(patch)
    second = hidden(bert, ids)
    assert not torch.allclose(first, second)
    patch.set_adapter("first")
    assert torch.equal(hidden(bert, ids), first)
    with pytest.raises(ArgumentError, match="not be active"):
        patch.delete_adapter("first")
    patch.delete_adapter("second")
    assert patch.adapter_names == ("first",)
    with pytest.raises(ArgumentError, match="`adapter_name` must name an adapter of this model, but got 'second'"):
        patch.set_adapter("second")
    assert torch.equal(hidden(bert, ids), first)


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
