"""Tiny configurations of every model type of the installed transformers, made by one generic rule."""

import json
from pathlib import Path
from typing import Any

from torch import nn
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.pytorch_utils import Conv1D

HIDDEN, HEADS, HEAD, LAYERS, VOCABULARY, IMAGE = 64, 4, 16, 2, 160, 32

SIZES: dict[str, int] = {
    name: int(size)
    for size, names in json.loads((Path(__file__).parent / "tiny_sizes.json").read_text()).items()
    for name in names
}
STAGES = ("depths", "num_heads", "num_attention_heads", "embed_dims", "hidden_sizes")
STAGE_NAMES = ("stage_names", "out_features", "out_indices")
LAYER_COUNTS = ("num_hidden_layers", "n_layer", "num_layers")
RATIOS_STAY = {"num_key_value_heads", "num_kv_heads", "n_kv_heads"}


def model_types() -> list[str]:
    """All model types of the installed transformers."""
    return sorted(CONFIG_MAPPING)


def tiny_model(model_type: str) -> PreTrainedModel:
    """A randomly initialised tiny model of this type; raises whatever building it raises."""
    config = tiny_config(model_type)
    for mapping in ("MODEL_MAPPING", "MODEL_FOR_PRETRAINING_MAPPING", "MODEL_FOR_CAUSAL_LM_MAPPING",
                    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING", "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING",
                    "MODEL_FOR_MULTIMODAL_LM_MAPPING", "MODEL_FOR_TEXT_TO_SPECTROGRAM_MAPPING"):  # fmt: skip
        classes = getattr(modeling_auto, mapping, {})
        if type(config) in classes:
            found = classes[type(config)]
            model = (found[0] if isinstance(found, tuple) else found)._from_config(config).eval()
            _enliven(model)
            return model
    raise LookupError("no auto class builds it: a part of other models")


def _enliven(model: PreTrainedModel) -> None:
    """Weights that keep the scale of what passes through; the usual start makes attention over few channels flat."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, Conv1D)):
            weight = module.weight
            fan_in = weight.shape[0] if isinstance(module, Conv1D) else weight[0].numel()
            nn.init.normal_(weight, std=fan_in**-0.5)


def tiny_config(model_type: str) -> PreTrainedConfig:
    """The type's default configuration, shrunk."""
    kind = CONFIG_MAPPING[model_type]
    default = kind()
    values = shrink(default)
    try:
        config = kind(**values)
    except Exception:
        config = default
    _enforce(config)
    return config


def shrink(config: PreTrainedConfig) -> dict[str, Any]:
    """The constructor arguments of a smaller configuration of the same kind."""
    dropped = ("model_type", "transformers_version", "architectures", "dtype", *STAGE_NAMES)
    values = {name: value for name, value in config.to_dict().items() if name not in dropped}
    original = dict(values)
    for name, value in original.items():
        part = getattr(config, name, None)
        values[name] = shrink(part) if isinstance(part, PreTrainedConfig) else _smaller(name, value, original)
    if "qk_rope_head_dim" in values:
        values |= {name: size for name, size in (("head_dim", 8), ("qk_head_dim", 24)) if name in values}
    if isinstance(values.get("patch_size"), int) and isinstance(values.get("image_size"), int):
        staged = any(isinstance(values.get(name), (list, tuple)) for name in STAGES)
        values["image_size"] = max(4 * IMAGE if staged else IMAGE, 4 * values["patch_size"])
    return values


def _smaller(name: str, value: Any, values: dict[str, Any]) -> Any:
    """One value of a configuration, shrunk by its name and kind."""
    hierarchical = any(isinstance(values.get(other), (list, tuple)) for other in STAGES)
    if name.endswith(("token_id", "token_index")):
        return _token(name, value)
    if name == "window_size" and type(value) is int:
        return 4
    if type(value) is int and name in SIZES:
        return value if hierarchical and SIZES[name] in (HIDDEN, HEADS, HEAD, LAYERS) else _size(name, value, values)
    if isinstance(value, list):
        return _list(name, value, values, hierarchical)
    if name == "partial_rotary_factor" and "qk_rope_head_dim" in values:
        return 1.0
    return _rope(value) if isinstance(value, dict) else value


def _token(name: str, value: Any) -> Any:
    if isinstance(value, list):
        return value[0] % VOCABULARY if value else None
    return 100 + sum(map(ord, name)) % 50 if isinstance(value, int) and value >= VOCABULARY else value


def _list(name: str, value: list[Any], values: dict[str, Any], hierarchical: bool) -> list[Any]:
    layers = next((values[n] for n in LAYER_COUNTS if type(values.get(n)) is int), None)
    if name == "attn_layer_indices":
        return [1]
    if name == "depths":
        return [1] * len(value)
    return _shorter(value) if layers == len(value) > LAYERS and not hierarchical else value


def _size(name: str, value: int, values: dict[str, Any]) -> int:
    if name in RATIOS_STAY and "kv_lora_rank" in values:
        return HEADS
    if name in RATIOS_STAY:
        full = next(
            (
                values[n]
                for n in ("num_attention_heads", "n_head", "n_heads", "num_heads")
                if isinstance(values.get(n), int)
            ),
            value,
        )
        return 1 if value == 1 else HEADS if value == full or full == HEADS and value == HEADS else 2
    return min(value, SIZES[name]) if name in ("max_position_embeddings", "max_source_positions") else SIZES[name]


def _shorter(value: list[Any]) -> list[Any]:
    distinct = list(dict.fromkeys(map(str, value)))
    if len(distinct) <= 1:
        return value[:LAYERS]
    return [next(v for v in value if str(v) == distinct[0]), next(v for v in value if str(v) == distinct[-1])]


def _rope(value: dict[str, Any]) -> dict[str, Any]:
    made = dict(value)
    for name, inner in value.items():
        if name in ("mrope_section", "xdrope_section"):
            made[name] = [2, 3, 3] if len(inner) == 3 else [2] * len(inner)
        elif name == "partial_rotary_factor":
            made[name] = 0.5 if inner is not None and inner < 1 else inner
        elif isinstance(inner, dict):
            made[name] = _rope(inner)
    return made


def _enforce(config: PreTrainedConfig) -> None:
    """Eager attention everywhere, for comparable kernels on the CPU."""
    config._attn_implementation = "eager"
