"""Inputs that make a model run, made from its configuration alone: what the probe feeds where the user gives nothing.

For the model, and for every part of it that is a `PreTrainedModel` of its own (the towers of a multimodal model), a few
sets of arguments are tried until one runs. Values mean nothing; shapes and ranges are right. Where none runs the user
passes `example_inputs`.
"""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from gssf_plug.attention.discovery.attention_module import AttentionModule
from gssf_plug.attention.discovery.dummy_tensors import TOKENS, DummyTensors
from gssf_plug.attention.discovery.recording import tensors_in

__all__ = [
    "make_arguments",
    "make_arguments_with_image",
    "make_layer_arguments",
    "runnable_parts",
    "takes_images_between_words",
]


def runnable_parts(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The model, then the parts of it that can run alone, outermost first."""
    yield "", model
    for name, module in model.named_modules():
        if name and isinstance(module, PreTrainedModel):
            yield name, module


def make_arguments(model: nn.Module) -> Iterator[dict[str, Any]]:
    """Sets of keyword arguments for `model.forward`, likeliest first."""
    dummies = DummyTensors(model)
    parameters = inspect.signature(model.forward).parameters
    names = list(parameters)
    masks = [name for name, declared in parameters.items() if name.endswith("mask") and _is_required(declared)]
    quiet = {"use_cache": False} if "use_cache" in names else {}
    main = getattr(model, "main_input_name", "input_ids")
    for variant in dummies.variants(names, [main] if isinstance(main, str) else list(main)):
        missing = [name for name in masks if name not in variant]
        for filled in dummies.masks(missing, variant) if missing else ({},):
            yield variant | filled | quiet
    own = getattr(model, "dummy_inputs", None) if isinstance(model, PreTrainedModel) else None
    if isinstance(own, dict):
        yield {name: value.to(dummies.device) if isinstance(value, Tensor) else value for name, value in own.items()}


def make_arguments_with_image(model: nn.Module) -> Iterator[dict[str, Any]]:
    """Arguments with an image and its place among the words, for models that put its features there."""
    if not takes_images_between_words(model):
        return
    dummies, names = DummyTensors(model), list(inspect.signature(model.forward).parameters)
    token = dummies.number(*IMAGE_TOKENS)
    get_features: Any = _image_features(model)
    for pixels in dummies.pixels():
        try:
            with torch.no_grad():
                found = get_features(pixels)
        except Exception:  # an image of another shape, or one that needs more than its pixels
            continue
        pooled = getattr(found, "pooler_output", None)
        features = tensors_in(found if pooled is None else pooled)
        count = sum(feature.shape[:-1].numel() for feature in features)
        yield dummies.text(names, between=[token] * count) | {"pixel_values": pixels}


def takes_images_between_words(model: nn.Module) -> bool:
    """Does the model put an image's features where certain words stand."""
    names = inspect.signature(model.forward).parameters.keys()
    token = DummyTensors(model).number(*IMAGE_TOKENS) if {"input_ids", "pixel_values"} <= names else None
    return isinstance(token, int) and _image_features(model) is not None


def _image_features(model: nn.Module) -> object:
    """The method that makes an image's features; a task head does not always hand on that of its base model."""
    own = getattr(model, "get_image_features", None)
    return own or getattr(getattr(model, "base_model", None), "get_image_features", None)


def make_layer_arguments(attention: AttentionModule) -> Iterator[dict[str, Any]]:
    """Sets of arguments for one attention module alone, by the names of its parameters."""
    owner = attention.module
    dummies = DummyTensors(owner)
    signature = inspect.signature(owner.forward).parameters
    spread = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    parameters = {name: parameter for name, parameter in signature.items() if parameter.kind not in spread}
    handed_on = len(parameters) < len(signature) and "attention_mask" not in parameters
    masks = [name for name, parameter in parameters.items() if name.endswith("mask") and _is_required(parameter)]
    for x, other in _states(dummies, attention.query, attention.widths):
        for size in dict.fromkeys((*dummies.rotary_sizes(owner), 0)) if parameters.keys() & ROTARY else (0,):
            made: dict[str, Any] = {}
            for position, (name, parameter) in enumerate(parameters.items()):
                value = _layer_argument(dummies, name, x, other, size)
                if position == 0 and value is None:
                    value = x
                if value is not None or _is_required(parameter):
                    made[name] = value
            yield made
            if handed_on:
                yield made | {"attention_mask": None}
            yield from _attending_to_itself(made, parameters)
            if made.keys() & OTHER_STATES and x.shape == other.shape:
                yield {name: other if name in OTHER_STATES else value for name, value in made.items()}
            if "position_ids" in made:  # rows and columns
                yield made | {"position_ids": made["position_ids"][..., None].expand(1, TOKENS, 2)}
            for filled in dummies.masks(masks, {"x": x}) if masks else ():
                yield made | filled


def _attending_to_itself(made: dict[str, Any], parameters: Mapping[str, inspect.Parameter]) -> Iterator[dict[str, Any]]:
    """The arguments without other states to look at, where there are any and they may be left out."""
    needed = {name: v for name, v in made.items() if name not in OTHER_STATES or _is_required(parameters[name])}
    if len(needed) < len(made):
        yield needed


def _states(
    dummies: DummyTensors, query: Tensor | nn.Module, widths: tuple[int, int]
) -> Iterator[tuple[Tensor, Tensor]]:
    """What the layer transforms, and what it may look at, in every arrangement of axes that its query allows."""
    if isinstance(query, (nn.Conv2d, nn.Conv1d)):
        places: tuple[int, ...] = (4, 4) if isinstance(query, nn.Conv2d) else (TOKENS,)
        yield dummies.real(1, widths[0], *places), dummies.real(1, widths[1], *places)
    for places in ((1, TOKENS), (TOKENS,), (1, 4, 4), (TOKENS, TOKENS)):  # the last: whichever axis is the batch
        yield dummies.real(*places, widths[0]), dummies.real(*places, widths[1])


def _is_required(parameter: inspect.Parameter) -> bool:
    return parameter.default is inspect.Parameter.empty and parameter.kind in (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.KEYWORD_ONLY,
    )


STATES = {
    "hidden_states", "hidden_state", "query", "queries", "q", "x", "inputs", "embeddings", "latents", "query_tensor",
    "query_states", "object_queries", "vision_features", "current_vision_features",
    "query_position_embeddings",
}  # fmt: skip
BESIDE = {"key", "value", "keys", "values", "k", "v", "key_tensor", "value_tensor", "key_states", "value_states"}
OTHER_STATES = {
    "key_value_states", "encoder_hidden_states", "cross_attention_states", "context", "current_states",
    "text_features", "memory", "protein_kv_states",
}  # fmt: skip
ROTARY = {"position_embeddings", "rotary_pos_emb", "position_embedding"}
IMAGE_TOKENS = ("image_token_id", "image_token_index")


def _layer_argument(dummies: DummyTensors, name: str, x: Tensor, other: Tensor, rotary_size: int) -> Any:
    """A value for one parameter of an attention module; None where it is left out."""
    if name in STATES:
        return x
    if name in BESIDE:
        return x if x.shape == other.shape else other
    if name in OTHER_STATES:
        return dummies.real(*other.shape[:-2], other.shape[-2] + 2, other.shape[-1])
    if name in ROTARY and rotary_size:
        angles = dummies.real(*x.shape[:-1], rotary_size)
        return angles.cos(), angles.sin()
    if name in ("cu_seqlens", "cu_seq_lens"):
        return torch.tensor([0, TOKENS], dtype=torch.int32, device=x.device)
    if name == "position_ids":
        return torch.arange(TOKENS, device=x.device)[None]
    return {"height": TOKENS, "width": 1, "shared_kv_states": {}}.get(name)
