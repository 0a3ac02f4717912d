"""Copies that average: EMA and SWA of a patched model carry metrics of their own, and average them, too."""

import copy
from typing import Self

import pytest
import torch
from attention.patching import hidden, perturb
from attention.small_models import small_bert
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import BertModel, BloomConfig, BloomModel

from gssf_plug.attention import AttentionPatch, patch_attention
from gssf_plug.errors import ArgumentError


def small_bloom() -> BloomModel:
    """Its query lies between keys and values, so that indices say where."""
    torch.manual_seed(0)
    return BloomModel(BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.3)).eval()


def frozen(values: object) -> list[Tensor]:
    return [value.detach().clone() for value in values]


@pytest.mark.parametrize("use_buffers", [False, True])
@pytest.mark.parametrize("make", [small_bert, small_bloom])
def test_averaged_model(make: object, use_buffers: bool, ids: Tensor) -> None:
    """torch's own; with buffers it also averages whole numbers, which rounds them down."""
    if make is small_bert and use_buffers:
        pytest.skip("torch rounds BERT's own position_ids down")
    model = make()
    patch = patch_attention(model, block_size=4)
    perturb(patch)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999), use_buffers=use_buffers)
    average.update_parameters(model)  # the first is a copy
    first = frozen(patch.parameters())
    perturb(patch)
    average.update_parameters(model)
    expected = [0.999 * a + 0.001 * b for a, b in zip(first, patch.parameters(), strict=True)]
    twin = AttentionPatch(average.module)
    for got, wanted in zip(twin.parameters(), expected, strict=True):
        torch.testing.assert_close(got, wanted)

    reference = make()
    plain = patch_attention(reference, block_size=4)
    with torch.no_grad():
        for parameter, value in zip(plain.parameters(), expected, strict=True):
            parameter.copy_(value)
    averaged = hidden(average, ids)
    torch.testing.assert_close(averaged, hidden(reference, ids), atol=1e-5, rtol=1e-4)
    live = hidden(model, ids)
    twin.merge()
    torch.testing.assert_close(hidden(average, ids), averaged, atol=1e-5, rtol=1e-4)
    twin.unmerge()
    twin.remove()
    assert torch.equal(hidden(model, ids), live)


def test_an_averaging_wrapper_is_patched_through(bert: BertModel, ids: Tensor) -> None:
    average = AveragedModel(bert)
    patch = patch_attention(average, block_size=4)
    assert list(patch.layers) == [f"module.encoder.layer.{n}.attention.self" for n in (0, 1)]
    perturb(patch)
    assert not torch.allclose(hidden(average, ids), hidden(bert, ids), atol=1e-3)


class Shadow(nn.Module):
    """An EMA as many write it: the average hides behind the class, and setting attributes sets the average's."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__()
        self.__dict__["decay"] = decay
        self._modules["average"] = copy.deepcopy(model).requires_grad_(False)

    def __setattr__(self, name: str, value: object) -> None:
        if "average" in self.__dict__.get("_modules", {}):
            setattr(self.average, name, value)
        else:
            super().__setattr__(name, value)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        for mine, theirs in zip(self.average.parameters(), model.parameters(), strict=True):
            mine.lerp_(theirs, 1 - self.decay)

    def forward(self, *arguments: object, **options: object) -> object:
        return self.average(*arguments, **options)


def test_an_average_with_attributes_of_its_own_kind(bert: BertModel, ids: Tensor) -> None:
    patch = patch_attention(bert, block_size=4)
    perturb(patch)
    average, first = Shadow(bert, 0.5), frozen(patch.parameters())
    perturb(patch)
    average.update(bert)
    twin = AttentionPatch(average)
    for got, old, new in zip(twin.parameters(), first, patch.parameters(), strict=True):
        torch.testing.assert_close(got, (old + new) / 2)
    averaged = hidden(average, ids)
    assert not torch.allclose(averaged, hidden(bert, ids), atol=1e-3)
    twin.merge()
    torch.testing.assert_close(hidden(average, ids), averaged, atol=1e-5, rtol=1e-5)
    twin.unmerge()
    twin.remove()
    patch.remove()
    assert torch.equal(hidden(average, ids), hidden(bert, ids))


class Sealed(BertModel):
    """Takes no attribute once it is built, and copies itself by building anew."""

    def __setattr__(self, name: str, value: object) -> None:
        if self.__dict__.get("sealed") and name != "training":
            raise AttributeError(f"{name} is not for you to set")
        super().__setattr__(name, value)

    def __deepcopy__(self, memory: dict[int, object]) -> Self:
        fresh = type(self)(self.config, add_pooling_layer=False).eval()
        fresh.load_state_dict(self.state_dict())
        return fresh


def test_a_model_that_builds_its_copies_anew(ids: Tensor) -> None:
    """Such a copy has no place for the metrics; torch says so, and a copy that is patched first takes them."""
    model = Sealed(small_bert().config, add_pooling_layer=False).eval()
    model.__dict__["sealed"] = True
    before, keys = hidden(model, ids), list(model.state_dict())
    patch = patch_attention(model, block_size=4)
    perturb(patch)
    patched = hidden(model, ids)
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\) in state_dict: .*gssf.adapters.default"):
        copy.deepcopy(model)
    assert torch.equal(hidden(model, ids), patched)
    fresh = Sealed(model.config, add_pooling_layer=False).eval()
    patch_attention(fresh, block_size=4)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(hidden(fresh, ids), patched)
    patch.merge()
    assert not torch.equal(hidden(copy.deepcopy(model), ids), before)
    patch.unmerge()
    patch.remove()
    assert torch.equal(hidden(copy.deepcopy(model), ids), before)
    assert list(model.state_dict()) == keys


def test_a_copied_handle_stands_alone_also_while_merged(bert: BertModel, ids: Tensor) -> None:
    before = hidden(bert, ids)
    patch = patch_attention(bert, block_size=4)
    perturb(patch)
    patched = hidden(bert, ids)
    patch.merge()
    merged = hidden(bert, ids)
    plain = copy.deepcopy(bert)
    with pytest.raises(ArgumentError, match="`model` must be patched, but got a plain BertModel"):
        AttentionPatch(plain)
    twin = copy.deepcopy(patch)
    twin.unmerge()
    assert torch.equal(hidden(twin.model, ids), patched)
    assert torch.equal(hidden(bert, ids), merged)
    twin.remove()
    assert torch.equal(hidden(twin.model, ids), before)
    patch.unmerge()
    assert torch.equal(hidden(bert, ids), patched)
