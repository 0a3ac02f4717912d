"""Inputs made from a configuration alone: they run the models and the layers that they are made for."""

import inspect

import pytest
import torch
from attention.small_models import PlainAttention, small_bert, small_llama
from tools.tiny import tiny_model
from torch import Tensor, nn

from gssf_plug.attention.discovery.attention_module import attention_modules
from gssf_plug.attention.discovery.example_inputs import (
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
