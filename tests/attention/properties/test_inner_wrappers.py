"""Wrappers inside the model: the files hold the paths of the plain model, and everything works through them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate.utils import compile_regions
from attention.patching import hidden, perturb
from attention.small_models import IDS, small_bert, small_llama
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing

from gssf_plug.attention import AttentionPatch, load_attention, patch_attention
from gssf_plug.attention.saving import FORMAT
from gssf_plug.files import read_folder


def checkpointed(model: nn.Module) -> nn.Module:
    kinds = ("LlamaDecoderLayer", "LlamaAttention", "BertLayer", "BertSelfAttention")
    apply_activation_checkpointing(model, check_fn=lambda module: type(module).__name__ in kinds)
    return model


def by_regions(model: nn.Module) -> nn.Module:
    return compile_regions(model, backend="eager")


WRAP = pytest.mark.parametrize("wrap", [checkpointed, pytest.param(by_regions, marks=pytest.mark.compile)])
MODEL = pytest.mark.parametrize("make", [small_bert, small_llama])


@WRAP
@MODEL
def test_saved_by_plain_paths(
    make: Callable[[], nn.Module], wrap: Callable[[nn.Module], nn.Module], tmp_path: Path
) -> None:
    model = make()
    patch = patch_attention(model, block_size=4)
    perturb(patch)
    before = hidden(model, IDS)
    wrapped = wrap(model)
    inside = AttentionPatch(wrapped)
    assert any(name != plain for name, plain in zip(inside.layers, patch.layers, strict=True))
    torch.testing.assert_close(hidden(wrapped, IDS), before, atol=1e-5, rtol=1e-5)

    inside.save_pretrained(tmp_path / "adapter")
    assert list(read_folder(tmp_path / "adapter", FORMAT)[0]["layers"]) == list(patch.layers)
    twin = make()
    load_attention(twin, tmp_path / "adapter")
    assert torch.equal(hidden(twin, IDS), before)

    perturb(inside)
    load_attention(wrapped, tmp_path / "adapter", hot_swap=True)
    torch.testing.assert_close(hidden(wrapped, IDS), before, atol=1e-5, rtol=1e-5)
    inside.merge()
    torch.testing.assert_close(hidden(wrapped, IDS), before, atol=1e-4, rtol=1e-4)


@WRAP
@MODEL
def test_wrapped_first(make: Callable[[], nn.Module], wrap: Callable[[nn.Module], nn.Module], tmp_path: Path) -> None:
    plain = make()
    patch = patch_attention(plain, block_size=4)
    perturb(patch)
    patch.save_pretrained(tmp_path / "adapter")
    wrapped = wrap(make())
    load_attention(wrapped, tmp_path / "adapter")
    torch.testing.assert_close(hidden(wrapped, IDS), hidden(plain, IDS), atol=1e-5, rtol=1e-5)
    fresh = wrap(make())
    before = hidden(fresh, IDS)
    again = patch_attention(fresh, block_size=4)
    assert not again.left_alone
    torch.testing.assert_close(hidden(fresh, IDS), before, atol=1e-6, rtol=1e-6)
    again.remove()
