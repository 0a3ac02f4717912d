"""Another adapter of the same shape is copied in place: same parameters, same graphs; all else is refused whole."""

import warnings
from pathlib import Path

import pytest
import torch
from attention.patching import hidden, perturb
from attention.small_models import IDS, small_bert, small_llama
from torch import Tensor
from transformers import LlamaForCausalLM

from gssf_plug.attention import AttentionPatch, load_attention, patch_attention
from gssf_plug.errors import ArgumentError, CheckpointError


def saved(folder: Path, sites: str, seed: int, **options: object) -> tuple[Path, Tensor]:
    """An adapter on disk, and what the model gives with it."""
    model = small_llama()
    patch = patch_attention(model, sites=sites, **{"block_size": 4, **options})
    torch.manual_seed(seed)
    perturb(patch, 0.5)
    patch.save_pretrained(folder / f"{sites}{seed}")
    return folder / f"{sites}{seed}", hidden(model, IDS)


@pytest.mark.parametrize("sites", ["projection", "score"])
def test_values_change_and_parameters_stay(llama: LlamaForCausalLM, tmp_path: Path, sites: str) -> None:
    (first, one), (second, two) = (saved(tmp_path, sites, seed) for seed in (1, 2))
    patch = load_attention(llama, first)
    before = list(patch.parameters())
    optimizer = torch.optim.SGD(patch.parameters(), lr=0.1)
    swapped = load_attention(llama, second, hot_swap=True)
    assert torch.equal(hidden(llama, IDS), two)
    assert all(a is b for a, b in zip(before, swapped.parameters(), strict=True))
    load_attention(llama, first, hot_swap=True)
    assert torch.equal(hidden(llama, IDS), one)
    llama(IDS)[0].square().mean().backward()
    optimizer.step()
    assert not torch.equal(hidden(llama, IDS), one)


def test_an_adapter_that_does_not_act_is_swapped_quietly(llama: LlamaForCausalLM, tmp_path: Path) -> None:
    (first, one), (second, two) = (saved(tmp_path, "projection", seed) for seed in (1, 2))
    load_attention(llama, first, adapter_name="other")
    patch = load_attention(llama, first)
    load_attention(llama, second, adapter_name="other", hot_swap=True)
    assert torch.equal(hidden(llama, IDS), one)
    patch.set_adapter("other")
    assert torch.equal(hidden(llama, IDS), two)


@pytest.mark.compile
@pytest.mark.parametrize("sites", ["projection", "score"])
def test_nothing_is_compiled_again(llama: LlamaForCausalLM, tmp_path: Path, sites: str) -> None:
    (first, one), (second, two) = (saved(tmp_path, sites, seed) for seed in (1, 2))
    load_attention(llama, first)
    compiled = torch.compile(llama, backend="aot_eager")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.testing.assert_close(compiled(IDS, use_cache=False)[0], one, atol=1e-5, rtol=1e-5)
        counters = torch._dynamo.utils.counters
        graphs, frames = counters["stats"]["unique_graphs"], dict(counters["frames"])
        assert graphs > 0
        load_attention(compiled, second, hot_swap=True)
        torch.testing.assert_close(compiled(IDS, use_cache=False)[0], two, atol=1e-5, rtol=1e-5)
        assert (counters["stats"]["unique_graphs"], dict(counters["frames"])) == (graphs, frames)
        perturbed = AttentionPatch(llama)  # the counter does move: another adapter is another graph
        patch_attention(llama, block_size=2, sites=sites, adapter_name="second")
        compiled(IDS, use_cache=False)
        assert counters["stats"]["unique_graphs"] > graphs
        assert perturbed.adapter_names == ("default", "second")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"terms": ("diagonal",)}, "has another structure for 'model.layers.0.self_attn' than the adapter"),
        ({"block_size": 2}, "has another structure"),
        ({"per_head": False}, "has another structure"),
        ({"layers": [0]}, "lacks the layer 'model.layers.1.self_attn', unlike the adapter it would replace"),
        ({"sites": "score"}, "has layout 'score' for 'model.layers.0.self_attn' where the model has 'q_proj'"),
    ],
)
def test_another_shape_is_refused_whole(
    llama: LlamaForCausalLM, tmp_path: Path, options: dict[str, object], problem: str
) -> None:
    patch = patch_attention(llama, block_size=4)
    perturb(patch)
    before = hidden(llama, IDS)
    path, _ = saved(tmp_path, **{"sites": "projection", "seed": 1, **options})
    with pytest.raises(CheckpointError, match=problem):
        load_attention(llama, path, hot_swap=True)
    assert torch.equal(hidden(llama, IDS), before)


def test_there_must_be_one_to_swap(llama: LlamaForCausalLM, tmp_path: Path) -> None:
    path, _ = saved(tmp_path, "projection", 1)
    with pytest.raises(ArgumentError, match="`model` must be patched, but got a plain LlamaForCausalLM"):
        load_attention(llama, path, hot_swap=True)
    load_attention(llama, path)
    with pytest.raises(ArgumentError, match="`adapter_name` must name an adapter that is there to swap.*'default'"):
        load_attention(llama, path, hot_swap=True, adapter_name="defualt")
    with pytest.raises(ArgumentError, match="Choose another name, copy into that adapter with hot_swap=True"):
        load_attention(llama, path)
    bert = small_bert()
    patch_attention(bert, block_size=4)
    with pytest.raises(CheckpointError, match="was trained on a 'llama'"):
        load_attention(bert, path, hot_swap=True)


def test_a_wrapped_model_is_welcome(llama: LlamaForCausalLM, tmp_path: Path) -> None:
    (first, _), (second, two) = (saved(tmp_path, "projection", seed) for seed in (1, 2))
    load_attention(llama, first)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.compile warns of its own imports
        compiled = torch.compile(llama)
    assert load_attention(compiled, second, hot_swap=True).model is llama
    assert torch.equal(hidden(llama, IDS), two)
