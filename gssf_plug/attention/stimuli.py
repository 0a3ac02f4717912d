"""Inputs that make a model run, made from its configuration alone: what the probe feeds where the user gives nothing.

For the model, and for every part of it that is a `PreTrainedModel` of its own (the towers of a multimodal model), a few
sets of arguments are tried until one runs. Values mean nothing; shapes and ranges are right. Where none runs the user
passes `example_inputs`.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

__all__ = ["arguments_of", "arguments_of_layer", "parts_of"]

TOKENS = 11  # prime, and rarely a number of heads


def parts_of(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The model, then the parts of it that can run alone, outermost first."""
    yield "", model
    for name, module in model.named_modules():
        if name and isinstance(module, PreTrainedModel):
            yield name, module


def arguments_of(model: nn.Module) -> Iterator[dict[str, Any]]:
    """Sets of keyword arguments for `model.forward`, likeliest first."""
    config = getattr(model, "config", None)
    parameter = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    maker = _Maker(config, parameter.device, parameter.dtype)
    names = list(inspect.signature(model.forward).parameters)
    main = getattr(model, "main_input_name", "input_ids")
    for variant in maker.variants(names, main):
        quiet = {"use_cache": False} if "use_cache" in names else {}
        yield variant | quiet
    own = getattr(model, "dummy_inputs", None) if isinstance(model, PreTrainedModel) else None
    if isinstance(own, dict):
        yield {name: value.to(parameter.device) if isinstance(value, Tensor) else value for name, value in own.items()}


def arguments_of_layer(owner: nn.Module, width: int) -> Iterator[dict[str, Any]]:
    """Sets of arguments for one attention module alone, by the names of its parameters.

    Args:
        owner: the attention module.
        width: channels of its input.
    """
    parameter = next((p for p in owner.parameters() if p.is_floating_point()), torch.zeros(()))
    maker = _Maker(getattr(owner, "config", None), parameter.device, parameter.dtype)
    parameters = inspect.signature(owner.forward).parameters
    for batched in (True, False):
        x = maker.real(1, TOKENS, width) if batched else maker.real(TOKENS, width)
        for size in dict.fromkeys((*maker.rotary_sizes(owner), 0)):
            made: dict[str, Any] = {}
            for position, (name, declared) in enumerate(parameters.items()):
                value = _layer_argument(maker, name, x, size)
                if position == 0 and value is None:
                    value = x
                if value is not None or declared.default is inspect.Parameter.empty:
                    made[name] = value
            yield {
                name: value
                for name, value in made.items()
                if parameters[name].kind not in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
            }


def _layer_argument(maker: "_Maker", name: str, x: Tensor, rotary_size: int) -> Any:
    """A value for one parameter of an attention module; None where it is left out."""
    if name in (
        "hidden_states",
        "query",
        "key",
        "value",
        "x",
        "hidden_state",
        "inputs",
        "embeddings",
        "queries",
        "keys",
    ):
        return x
    if name in ("key_value_states", "encoder_hidden_states", "values", "cross_attention_states", "context"):
        return maker.real(*x.shape[:-2], TOKENS + 2, x.shape[-1])
    if name in ("position_embeddings", "rotary_pos_emb", "position_embedding") and rotary_size:
        angles = maker.real(*x.shape[:-1], rotary_size)
        return angles.cos(), angles.sin()
    if name in ("cu_seqlens", "cu_seq_lens"):
        return torch.tensor([0, TOKENS], dtype=torch.int32, device=x.device)
    if name == "position_ids":
        return torch.arange(TOKENS, device=x.device)[None]
    return None


class _Maker:
    """Tensors in the shapes that a configuration asks for."""

    def __init__(self, config: Any, device: torch.device, dtype: torch.dtype) -> None:
        self.config, self.device, self.dtype = config, device, dtype
        self.generator = torch.Generator().manual_seed(0)

    def variants(self, names: list[str], main: str) -> Iterator[dict[str, Any]]:
        """Arguments for a forward with these parameter `names`."""
        if "input_ids" in names:
            if "pixel_values" in names:
                yield from (self.text(names) | {"pixel_values": pixels} for pixels in self.pixels())
            yield self.text(names)
            yield self.text(names) | self.inferred(names)
        sounds = dict.fromkeys([*{main} - {"input_ids"}, "input_features", "input_values", "inputs", "past_values"])
        kinds: list[tuple[Iterable[str], Callable[[str], Iterator[Tensor]]]] = [
            (("pixel_values", "pixel_values_videos", "hidden_states", "x", "images"), lambda name: self.pixels()),
            (sounds, self.sounds),
            (("inputs_embeds", "hidden_states", "input_embeds", "embeddings", "image_embeddings"), self.embeddings),
        ]
        for group, make in kinds:
            for name in group:
                if name in names:
                    yield from ({name: value} | self.inferred(names, skip=name) for value in make(name))

    def embeddings(self, name: str) -> Iterator[Tensor]:
        """Hidden states of each width that the configuration names."""
        return (self.real(1, TOKENS, width) for width in self.widths())

    def text(self, names: list[str]) -> dict[str, Any]:
        """Token ids for the encoder and, where there is one, the decoder."""
        ids = self.ids()
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
        size = self.number("vocab_size", "text_vocab_size", "src_vocab_size") or 32
        special = (
            {value for name, value in vars(self.config).items() if name.endswith("token_id") and type(value) is int}
            if self.config is not None
            else set()
        )
        usable = [token for token in range(min(size, 4096)) if token not in special] or [0]
        chosen = torch.randint(len(usable), (1, TOKENS), generator=self.generator)
        return torch.tensor(usable)[chosen].to(self.device)

    def pixels(self) -> Iterator[Tensor]:
        """Images (1, C, H, W), then videos (1, F, C, H, W)."""
        channels = self.number("num_channels", "in_channels", "in_chans", "num_input_channels") or 3
        size = self.number("image_size", "img_size", "crop_size", "input_size") or 64
        height, width = size if isinstance(size, (tuple, list)) else (size, size)
        yield self.real(1, channels, height, width)
        frames = self.number("num_frames", "frames_per_clip", "tubelet_size") or 2
        yield self.real(1, frames, channels, height, width)
        yield self.real(1, channels, frames, height, width)

    def sounds(self, name: str) -> Iterator[Tensor]:
        """Waveforms, spectrograms with the bands first or last, series, feature vectors."""
        bands = (
            self.number(
                "num_mel_bins",
                "n_mels",
                "input_feat_per_channel",
                "input_dim",
                "feature_size",
                "input_channels",
                "feature_projection_input_dim",
                "d_model",
                "hidden_size",
            )
            or 16
        )
        positions = self.number("max_source_positions", "max_position_embeddings") or 32
        if name == "input_values":
            yield self.real(1, 4000)
        yield self.real(1, bands, 2 * positions) if positions <= 4096 else self.real(1, bands, 64)
        for length in (self.number("max_length", "context_length") or 64, 128):
            yield self.real(1, length, bands)
        yield self.real(1, bands, 128)
        yield self.real(1, 1, 128, bands)
        yield self.real(1, 4000)

    def widths(self) -> Iterator[int]:
        """Hidden sizes that the configuration names."""
        for name in ("hidden_size", "d_model", "embed_dim", "n_embd", "dim", "hidden_dim", "d_latents"):
            value = self.number(name)
            if isinstance(value, int):
                yield value

    def rotary_sizes(self, owner: nn.Module) -> Iterator[int]:
        """Numbers of rotated channels that the module or its configuration suggest."""
        for source in (owner, self.config):
            for name in (
                "qk_rope_head_dim",
                "rotary_ndims",
                "rotary_dim",
                "head_dim",
                "head_size",
                "attention_head_size",
            ):
                size = getattr(source, name, None)
                if type(size) is int:
                    yield from (size, size // 2, int(size * (self.number("partial_rotary_factor") or 1)))

    def number(self, *names: str) -> Any:
        """The first of `names` that the configuration, or one of its parts, holds."""
        for source in (self.config, *self._parts()):
            for name in names:
                value = getattr(source, name, None)
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
