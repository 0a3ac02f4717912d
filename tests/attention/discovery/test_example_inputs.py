"""Inputs made from a configuration alone: they run the models and the layers that they are made for."""

import inspect
from types import SimpleNamespace

import pytest
import torch
from attention.small_models import PlainAttention, small_bert, small_llama
from tools.tiny import tiny_model
from torch import Tensor, nn

from gssf_plug.attention.discovery.attention_module import attention_modules
from gssf_plug.attention.discovery.example_inputs import (
    TOKENS,
    DummyTensors,
    make_arguments,
    make_arguments_with_image,
    make_layer_arguments,
    runnable_parts,
    takes_images_between_words,
)


@pytest.mark.parametrize("model_type", ["bert", "vit", "t5"])
def test_one_of_the_first_runs_the_model(model_type: str) -> None:
    model = tiny_model(model_type)
    names = inspect.signature(model.forward).parameters.keys()
    ran = 0
    for number, arguments in enumerate(make_arguments(model)):
        assert arguments.keys() <= names
        try:
            with torch.no_grad():
                model(**arguments)
        except Exception:  # shapes that do not fit
            assert number < 10
        else:
            ran += 1
            break
    assert ran


def test_no_cache_is_asked_for_and_masks_that_are_needed_are_there() -> None:
    assert next(make_arguments(small_llama()))["use_cache"] is False

    class Masked(nn.Module):
        def forward(self, x: Tensor, padding_mask: Tensor) -> Tensor:
            return x

    assert {"x", "padding_mask"} == next(make_arguments(Masked())).keys()


def test_parts_that_run_alone_come_after_the_whole() -> None:
    model = nn.Sequential(small_bert(), nn.Linear(2, 2))
    assert [path for path, _ in runnable_parts(model)] == ["", "0"]


def test_an_image_goes_where_its_words_stand() -> None:
    model = tiny_model("llava")
    assert takes_images_between_words(model)
    arguments = next(make_arguments_with_image(model))
    token, count = model.config.image_token_id, model.get_image_features(arguments["pixel_values"]).pooler_output
    assert int((arguments["input_ids"] == token).sum()) == sum(feature.shape[:-1].numel() for feature in count)
    with torch.no_grad():
        model(**arguments)
    assert not takes_images_between_words(small_bert())
    assert list(make_arguments_with_image(small_bert())) == []


@pytest.mark.parametrize("layer", [PlainAttention(), small_llama().model.layers[0].self_attn,
                                   small_bert().encoder.layer[0].attention.self])  # fmt: skip
def test_one_of_the_first_runs_a_layer_alone(layer: nn.Module) -> None:
    (module,) = attention_modules(nn.Sequential(layer)).values()
    for number, arguments in enumerate(make_layer_arguments(module)):
        assert number < 10
        try:
            with torch.no_grad():
                layer(**arguments)
            return
        except Exception:  # rotary angles of another width
            continue


class Configured(nn.Module):
    """A module of bfloat16 with a configuration of these numbers."""

    def __init__(self, **numbers: object) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3, dtype=torch.bfloat16)
        self.config = SimpleNamespace(**numbers)


def shapes(tensors: object) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in tensors]


def test_token_ids_are_words_and_no_special_ones() -> None:
    dummies = DummyTensors(Configured(vocab_size=12, pad_token_id=0, eos_token_id=7, image_token_index=3))
    drawn = torch.cat([dummies.ids() for _ in range(50)])
    assert drawn.shape == (50, TOKENS)
    assert set(drawn.unique().tolist()) == set(range(12)) - {0, 7, 3}


def test_a_vocabulary_that_the_embeddings_do_not_have_is_not_believed() -> None:
    module = Configured(vocab_size=1000)
    module.get_input_embeddings = lambda: nn.Embedding(5, 2)
    assert int(DummyTensors(module).ids().max()) < 5


def test_values_have_the_modules_dtype_and_are_the_same_each_time() -> None:
    module = Configured(hidden_size=8)
    one, other = DummyTensors(module), DummyTensors(module)
    assert torch.equal(one.real(2, 3), other.real(2, 3))
    assert one.real(1).dtype == torch.bfloat16


def test_widths_are_those_that_are_named_then_that_of_the_first_parameter() -> None:
    assert list(DummyTensors(Configured(d_model=8, hidden_size=4)).widths()) == [4, 8, 6]
    assert shapes(DummyTensors(Configured(hidden_size=4)).embeddings("x")) == [(1, TOKENS, 4), (1, TOKENS, 6)]


def test_images_then_videos() -> None:
    found = shapes(DummyTensors(Configured(num_channels=1, image_size=(8, 4), num_frames=3)).pixels())
    assert found[:3] == [(1, 1, 8, 4), (1, 3, 1, 8, 4), (1, 1, 3, 8, 4)]
    assert found[3] == (1, 1, 224, 224)


def test_sounds_have_their_bands_first_or_last() -> None:
    found = shapes(DummyTensors(Configured(num_mel_bins=5, max_source_positions=7)).sounds("input_features"))
    assert found[0] == (1, 5, 14)
    assert (1, 64, 5) in found
    assert shapes(DummyTensors(Configured()).sounds("input_values"))[0] == (1, 4000)


def test_numbers_are_looked_for_in_parts_of_a_configuration_too() -> None:
    text = SimpleNamespace(hidden_size=16, to_dict=dict)
    dummies = DummyTensors(Configured(text_config=text, flag=True))
    assert dummies.number("hidden_size") == 16
    assert dummies.number("flag", "nothing") is None  # True is no number


def test_variants_hold_what_the_forward_names() -> None:
    dummies = DummyTensors(Configured(vocab_size=12, hidden_size=4, image_size=8))
    first = next(dummies.variants(["input_ids", "attention_mask", "pixel_values"], ["input_ids"]))
    assert set(first) == {"input_ids", "attention_mask", "pixel_values"}
    alone = next(dummies.variants(["inputs_embeds"], ["inputs_embeds"]))
    assert list(alone) == ["inputs_embeds"]
    decoder = next(dummies.variants(["input_ids", "decoder_input_ids"], ["input_ids"]))
    assert decoder["decoder_input_ids"].shape == (1, TOKENS - 2)


def test_masks_hide_nothing_in_either_convention() -> None:
    dummies = DummyTensors(Configured())
    masks = [made["mask"] for made in dummies.masks(["mask"], {"x": torch.randn(2, 5, 7)})]
    assert [tuple(mask.shape) for mask in masks[::3]] == [(2, 5), (2, 7), (1, 2 * TOKENS)]
    assert [mask.dtype for mask in masks[:3]] == [torch.long, torch.bool, torch.bool]
    assert [bool(mask.any()) for mask in masks[:3]] == [True, False, True]
    assert list(dummies.masks(["mask"], {"n": 3})) == []
