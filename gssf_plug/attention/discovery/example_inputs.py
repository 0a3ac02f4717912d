"""Inputs that make a model run, made from its configuration alone: what the probe feeds where the user gives nothing.

For the model, and for every part of it that is a `PreTrainedModel` of its own (the towers of a multimodal model), a few
sets of arguments are tried until one runs. Values mean nothing; shapes and ranges are right. Where none runs the user
passes `example_inputs`.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from gssf_plug.attention.discovery.attention_module import AttentionModule
from gssf_plug.attention.discovery.layouts import setting
from gssf_plug.attention.discovery.recording import tensors_in

__all__ = [
    "TOKENS",
    "DummyTensors",
    "make_arguments",
    "make_arguments_with_image",
    "make_layer_arguments",
    "runnable_parts",
    "takes_images_between_words",
]

TOKENS = 11  # prime, and rarely a number of heads
BANDS = (
    "num_mel_bins", "n_mels", "input_feat_per_channel", "input_feat_size", "input_dim", "feature_size",
    "input_channels", "feature_projection_input_dim", "d_model", "hidden_size",
)  # fmt: skip
ROTARY_SIZES = "qk_rope_head_dim", "rotary_ndims", "rotary_dim", "head_dim", "head_size", "attention_head_size"
SPREAD = inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL


class DummyTensors:
    """Makes the tensors for one module.

    Args:
        module: the module that will be run; the tensors get its device and data type.
    """

    def __init__(self, module: nn.Module) -> None:
        parameter = next((p for p in module.parameters() if p.is_floating_point()), torch.zeros(()))
        self.config: Any = getattr(module, "config", None)
        self.device, self.dtype = parameter.device, parameter.dtype
        self.first = next((p.shape[-1] for p in module.parameters() if p.ndim), 1)  # often the width of the input
        self.words = _words(module)
        self.generator = torch.Generator().manual_seed(0)

    def variants(self, names: list[str], main: list[str]) -> Iterator[dict[str, Any]]:
        """Arguments for a forward with these parameter `names`."""
        if "input_ids" in names:
            if "pixel_values" in names:
                yield from (self.text(names) | {"pixel_values": pixels} for pixels in self.pixels())
            yield self.text(names)
            yield self.text(names) | self.inferred(names)
        sounds = dict.fromkeys(
            [*(name for name in main if name != "input_ids"), "input_features", "input_values", "inputs", "past_values"]
        )
        kinds: list[tuple[Iterable[str], Callable[[str], Iterator[Tensor]]]] = [
            (
                ("pixel_values", "pixel_values_videos", "hidden_states", "x", "images", "image"),
                lambda name: self.pixels(),
            ),
            (sounds, self.sounds),
            (("inputs_embeds", "hidden_states", "input_embeds", "embeddings", "image_embeddings"), self.embeddings),
        ]
        for group, make in kinds:
            for name in group:
                if name in names:
                    yield from ({name: value} | self.inferred(names, skip=name) for value in make(name))

    def masks(self, names: list[str], beside: Mapping[str, Any]) -> Iterator[dict[str, Tensor]]:
        """Masks that hide nothing, in the conventions there are (1 keeps, or True hides), for either axis of time."""
        main = next((value for value in beside.values() if isinstance(value, Tensor) and value.ndim > 1), None)
        if main is None:
            return
        for shape in dict.fromkeys((main.shape[:2], (main.shape[0], main.shape[-1]), (1, 2 * TOKENS))):
            keep = torch.ones(shape, dtype=torch.long, device=self.device)
            for mask in (keep, keep == 0, keep == 1):
                yield dict.fromkeys(names, mask)

    def embeddings(self, name: str) -> Iterator[Tensor]:
        """Hidden states of each width that the configuration names."""
        return (self.real(1, TOKENS, width) for width in self.widths())

    def text(self, names: list[str], between: Sequence[int] = ()) -> dict[str, Any]:
        """Token ids for the encoder, perhaps with others among them, and, where there is one, the decoder."""
        ids = self.ids()
        others = torch.tensor([between], dtype=ids.dtype, device=ids.device)
        ids = torch.cat([ids[:, :1], others, ids[:, 1:]], 1) if between else ids
        made: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        made["decoder_input_ids"] = ids[:, : TOKENS - 2]
        made["bbox"] = torch.zeros(1, ids.shape[1], 4, dtype=torch.long, device=self.device)
        return {name: value for name, value in made.items() if name in names}

    def inferred(self, names: list[str], skip: str = "") -> dict[str, Any]:
        """Secondary arguments that some models insist on."""
        made: dict[str, Any] = {}
        if "decoder_input_ids" in names:
            made["decoder_input_ids"] = self.ids()[:, : TOKENS - 2]
        hidden = next(iter(self.widths()), 8)
        if "encoder_hidden_states" in names:
            made["encoder_hidden_states"] = self.real(
                1, TOKENS + 2, self.number("cross_hidden_size", "encoder_hidden_size") or hidden
            )
        if "input_ids" in names and skip != "input_ids":
            made |= self.text(names)
        made.pop(skip, None)
        return made

    def ids(self) -> Tensor:
        """Token ids (1, TOKENS), none of them special where the vocabulary allows it."""
        size = min(self.number("vocab_size", "text_vocab_size", "src_vocab_size") or 32, self.words)
        special = (
            {
                value
                for name, value in vars(self.config).items()
                if name.endswith(("token_id", "token_index")) and type(value) is int
            }
            if self.config is not None
            else set()
        )
        usable = [token for token in range(min(size, 4096)) if token not in special] or [0]
        chosen = torch.randint(len(usable), (1, TOKENS), generator=self.generator)
        return torch.tensor(usable)[chosen].to(self.device)

    def pixels(self) -> Iterator[Tensor]:
        """Images (1, C, H, W), then videos (1, F, C, H, W)."""
        channels = self.number("num_channels", "in_channels", "in_chans", "num_input_channels") or 3
        size = self.number("image_size", "img_size", "crop_size", "input_size")
        frames = self.number("num_frames", "frames_per_clip", "tubelet_size") or 2
        frames = frames if isinstance(frames, int) else frames[0]
        for sides in (size or 64, 224):  # 64 leaves a single token behind deep strides
            height, width = sides if isinstance(sides, (tuple, list)) else (sides, sides)
            yield self.real(1, channels, height, width)
            yield self.real(1, frames, channels, height, width)
            yield self.real(1, channels, frames, height, width)

    def sounds(self, name: str) -> Iterator[Tensor]:
        """Waveforms, spectrograms with the bands first or last, series, feature vectors."""
        bands = self.number(*BANDS) or 16
        positions = self.number("max_source_positions", "max_position_embeddings") or 32
        if name == "input_values":
            yield self.real(1, 4000)
        yield self.real(1, bands, 2 * positions) if positions <= 4096 else self.real(1, bands, 64)
        for length in (self.number("max_length", "context_length") or 64, 128):
            yield self.real(1, length, bands)
        yield self.real(1, 64, self.first)
        yield self.real(1, bands, 128)
        yield self.real(1, 1, 128, bands)
        yield self.real(1, 4000)

    def widths(self) -> Iterator[int]:
        """Hidden sizes that the configuration names, then the width of the first parameter."""
        for name in ("hidden_size", "d_model", "embed_dim", "n_embd", "dim", "hidden_dim", "d_latents"):
            value = self.number(name)
            if isinstance(value, int):
                yield value
        yield self.first

    def rotary_sizes(self, owner: nn.Module) -> Iterator[int]:
        """Numbers of rotated channels that the module or its configuration suggest."""
        for source in (owner, self.config):
            for name in ROTARY_SIZES:
                size = setting(source, name)
                if type(size) is int:
                    yield from (size, size // 2, int(size * (self.number("partial_rotary_factor") or 1)))

    def number(self, *names: str) -> Any:
        """The first of `names` that the configuration, or one of its parts, holds."""
        for source in (self.config, *self._parts()):
            for name in names:
                value = setting(source, name)
                if isinstance(value, (int, tuple, list)) and not isinstance(value, bool) and value:
                    return value
        return None

    def _parts(self) -> list[Any]:
        return (
            [part for part in vars(self.config).values() if hasattr(part, "to_dict")] if self.config is not None else []
        )

    def real(self, *shape: int) -> Tensor:
        """Standard normal values."""
        return torch.randn(shape, generator=self.generator).to(self.device, self.dtype)


def _words(module: nn.Module) -> int:
    """How many token ids `module` has embeddings for; a configuration may name another vocabulary (PaliGemma)."""
    try:
        embeddings: Any = module.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError, TypeError):
        return 4096
    count = getattr(embeddings, "num_embeddings", None)
    return count if isinstance(count, int) else 4096


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
    parameters = {name: parameter for name, parameter in signature.items() if parameter.kind not in SPREAD}
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
    return parameter.default is inspect.Parameter.empty and parameter.kind not in SPREAD


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
