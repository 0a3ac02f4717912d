"""Several patches and several handles on one model: what came last goes first, and nothing is left behind."""

import pytest
import torch
from attention.patching import hidden, perturb
from torch import Tensor
from transformers import BertModel

from gssf_plug.attention import AttentionPatch, patch_attention
from gssf_plug.errors import ArgumentError


def test_a_merged_model_that_is_patched_anew(bert: BertModel, ids: Tensor) -> None:
    before = hidden(bert, ids)
    first = patch_attention(bert, block_size=4)
    perturb(first)
    first.merge()
    merged = hidden(bert, ids)
    second = patch_attention(bert, block_size=4)
    perturb(second)
    both = hidden(bert, ids)
    with pytest.raises(
        ArgumentError, match="be the last on its layers to be unmerged, but got a newer one at 'encoder"
    ):
        first.unmerge()
    assert torch.equal(hidden(bert, ids), both)
    second.remove()
    assert torch.equal(hidden(bert, ids), merged)
    first.unmerge()
    first.remove()
    assert torch.equal(hidden(bert, ids), before)
    assert not any(module._forward_hooks for module in bert.modules())


def test_another_handle_merged(bert: BertModel, ids: Tensor) -> None:
    patch = patch_attention(bert, block_size=4)
    other = AttentionPatch(bert)
    perturb(patch)
    patch.merge()
    merged = hidden(bert, ids)
    with pytest.raises(ArgumentError, match="be in the model to be merged, but got one that another handle took out"):
        other.merge()
    assert torch.equal(hidden(bert, ids), merged)
