"""DummyTensors: tensors in the shapes and ranges that a configuration asks for. Their values mean nothing."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gssf_plug.attention.discovery.layouts import setting

__all__ = ["TOKENS", "DummyTensors"]

TOKENS = 11  # prime, and rarely a number of heads


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
        bands = (
            self.number(
                "num_mel_bins",
                "n_mels",
                "input_feat_per_channel",
                "input_feat_size",
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
            for name in (
                "qk_rope_head_dim",
                "rotary_ndims",
                "rotary_dim",
                "head_dim",
                "head_size",
                "attention_head_size",
            ):
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
