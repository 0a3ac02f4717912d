"""The order of users: a model that never ran is patched, then records its outputs. A twin that was never patched does
the same, and all of their outputs are equal: how many, their shapes, their bits."""

import copy
import random
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from attention.object_graph import object_graph
from attention.small_models import IDS, small_bert, small_llama
from tools.sweep import everything, find_calls, recording, unlike
from tools.tiny import tiny_model
from torch import nn
from transformers import BertConfig, BertModel, BigBirdConfig, BigBirdModel

from gssf_plug.attention import AttentionPatch, load_attention, patch_attention
from gssf_plug.errors import ArgumentError

TYPES = ["bert", "big_bird", "clipseg", "llama", "llava", "swin", "t5", "wav2vec2", "whisper"]
pytestmark = pytest.mark.filterwarnings("default")  # what transformers says while it builds odd models


def fresh(model_type: str, record: str = "") -> nn.Module:
    torch.manual_seed(0)
    model = tiny_model(model_type)
    if record:
        recording(model, names=(record,))
    return model


@pytest.mark.parametrize("sites", ["projection", "score"])
@pytest.mark.parametrize("model_type", TYPES)
def test_the_object_graph_is_as_before(model_type: str, sites: str) -> None:
    model = fresh(model_type, "output_hidden_states")
    before, states = object_graph(model), (torch.get_rng_state(), random.getstate(), str(np.random.get_state()))  # noqa: NPY002
    try:
        patch_attention(model, block_size=2, sites=sites).remove()  # type: ignore[arg-type]
    except ArgumentError:
        assert sites == "score"  # swin has no attention that asks for an attention function
    assert object_graph(model) == before
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), str(np.random.get_state())) == states[1:]  # noqa: NPY002
    assert torch.is_grad_enabled()


def test_the_object_graph_can_tell() -> None:
    """A hook, a flag, a buffer's value, an entry of a dictionary: each shows."""
    model = small_bert()
    before = object_graph(model)
    handle = model.encoder.layer[1].register_forward_hook(lambda *given: None)
    assert object_graph(model) != before
    handle.remove()
    assert object_graph(model) == before
    model.embeddings.position_ids += 1
    assert object_graph(model) != before
    model.embeddings.position_ids -= 1
    model.config.strange = True
    assert object_graph(model) != before


@pytest.mark.parametrize("sites", ["projection", "score"])
def test_load_attention_leaves_the_object_graph(tmp_path: Path, sites: str) -> None:
    patch_attention(fresh("llama"), block_size=2, sites=sites).save_pretrained(tmp_path)  # type: ignore[arg-type]
    model = fresh("llama", "output_attentions")
    before = object_graph(model)
    load_attention(model, tmp_path).remove()
    assert object_graph(model) == before


@pytest.mark.parametrize("sites", ["projection", "score"])
@pytest.mark.parametrize("record", ["output_hidden_states", "output_attentions"])
@pytest.mark.parametrize("model_type", ["bert", "clipseg", "llama", "llava"])
def test_recorded_outputs_are_those_of_a_twin(model_type: str, record: str, sites: str) -> None:
    calls = find_calls(fresh(model_type))
    for record_in_config, options in ((record, {}), ("", {record: True})):
        twin, patched = fresh(model_type, record_in_config), fresh(model_type, record_in_config)
        patch = patch_attention(patched, block_size=2, sites=sites)  # type: ignore[arg-type]
        expected = everything(twin, calls, options)
        assert len(expected) > len(everything(fresh(model_type), calls))  # something is recorded
        assert not unlike(everything(patched, calls, options), expected)
        patch.remove()
        assert not unlike(everything(patched, calls, options), expected)


def test_hidden_states_and_attentions_are_as_many_as_the_layers() -> None:
    for flag, count in (("output_hidden_states", 3), ("output_attentions", 2)):
        torch.manual_seed(0)
        config = BertConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
        setattr(config, "_attn_implementation", "eager")  # noqa: B010
        setattr(config, flag, True)
        model = BertModel(config).eval()
        for _ in range(2):
            patch_attention(model).remove()
        patch_attention(model)
        assert len(model(IDS)[flag.removeprefix("output_")]) == count


def test_generation_records_like_the_twin() -> None:
    twin, patched = small_llama(), copy.deepcopy(small_llama())
    patch_attention(patched, block_size=2)
    options = {"max_new_tokens": 3, "return_dict_in_generate": True, "output_hidden_states": True, "do_sample": False}
    one, other = (model.generate(IDS, **options, pad_token_id=0) for model in (patched, twin))
    assert torch.equal(one.sequences, other.sequences)
    assert [len(step) for step in one.hidden_states] == [len(step) for step in other.hidden_states] == [3, 3, 3]


@pytest.fixture(autouse=True)
def _the_graph_of_autograd() -> Iterator[None]:
    yield
    assert torch.is_grad_enabled()


def big_bird() -> BigBirdModel:
    """With sparse attention, for which short inputs are too short: it then puts another attention in its place."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = BigBirdConfig(
        vocab_size=100, block_size=4, num_random_blocks=1, max_position_embeddings=64, initializer_range=0.3, **shape
    )
    return BigBirdModel(config, add_pooling_layer=False).eval()


@pytest.mark.parametrize("when", ["acting", "folded", "merged", "copied"])
@torch.no_grad()
def test_an_attention_that_the_model_replaces_by_itself(when: str, tmp_path: Path) -> None:
    plain, model = big_bird(), big_bird()
    before = set(model.state_dict())
    patch = patch_attention(model, block_size=4)
    for parameter in patch.parameters():
        parameter.add_(torch.randn_like(parameter))
    if when == "copied":
        model = copy.deepcopy(model)
        patch = AttentionPatch(model)
    sparse = model.encoder.layer[0].attention.self
    with patch.folded() if when == "folded" else nullcontext():
        if when == "merged":
            patch.merge()
        first = model(IDS).last_hidden_state
    if when == "merged":
        patch.unmerge()
    assert model.encoder.layer[0].attention.self is not sparse
    assert torch.allclose(model(IDS).last_hidden_state, first, atol=1e-5)
    inside = {name for name, _ in model.named_parameters()}
    assert {name for name, _ in patch.named_parameters()} <= inside
    assert "lost" not in patch.summary()
    assert len([hook for m in model.modules() for hook in m._forward_hooks]) == 2
    with patch.disabled():
        assert torch.equal(model(IDS).last_hidden_state, plain(IDS).last_hidden_state)
    assert not torch.allclose(first, plain(IDS).last_hidden_state, atol=1e-3)
    model.save_pretrained(tmp_path)
    load_attention(other := big_bird(), tmp_path)
    assert torch.allclose(other(IDS).last_hidden_state, first, atol=1e-5)
    patch.remove()
    assert set(model.state_dict()) == before
    assert not [hook for m in model.modules() for hook in (*m._forward_hooks, *m._forward_pre_hooks)]
    assert torch.equal(model(IDS).last_hidden_state, plain(IDS).last_hidden_state)
