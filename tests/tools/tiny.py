"""Tiny models of every model type of the installed transformers: one generic rule, then a short table of exceptions."""

import dataclasses
import importlib
import json
import pkgutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.pytorch_utils import Conv1D

HIDDEN, HEADS, HEAD, LAYERS, VOCABULARY, IMAGE = 64, 4, 16, 2, 160, 32

MOST_PARAMETERS = 130_000_000

SIZES: dict[str, int] = {
    name: int(size)
    for size, names in json.loads((Path(__file__).parent / "tiny_sizes.json").read_text()).items()
    for name in names
}
STAGES = ("depths", "num_heads", "num_attention_heads", "embed_dims", "hidden_sizes")
STAGE_NAMES = ("stage_names", "out_features", "out_indices")
LAYER_COUNTS = ("num_hidden_layers", "n_layer", "num_layers")
RATIOS_STAY = {"num_key_value_heads", "num_kv_heads", "n_kv_heads"}

FILLED: dict[str, Any] = {
    "head_dim": HEAD, "num_key_value_heads": HEADS, "num_kv_heads": HEADS, "prediction_length": 8,
    "vocab_size": VOCABULARY, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
    "n_shared_experts": 1,
    "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 96,
    "layer_types": ["full_attention"] * LAYERS, "mlp_layer_types": ["dense", "sparse"],
    "vocabulary_map": {"<image>": 7, "IMGIMGAZ": 9}, "deepstack_layer_map": [[0, 1]],
}  # fmt: skip
"""Used where a default is None and the model cannot be built with it."""

ALWAYS_FILLED = {"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
"""Used wherever a default is None: the model is built without, but does not run."""

ROTARY = {"rope_type": "default", "rope_theta": 10_000.0}
SETTINGS: dict[str, dict[str, Any]] = {
    "blt": {"encoder_hash_byte_group_vocab": 100},
    "cohere_compass": {"text_config": {"rope_parameters": {"full_attention": ROTARY}}},
    "cohere_compass_text": {"rope_parameters": {"full_attention": ROTARY}},
    "ernie4_5_vl_moe": {"text_config": {"rope_parameters": ROTARY | {"mrope_section": [3, 3, 2]}}},
    "ernie4_5_vl_moe_text": {"rope_parameters": ROTARY | {"mrope_section": [3, 3, 2]}},
    "dbrx": {"attn_config": {"rope_theta": 10_000.0, "clip_qkv": 8.0}},
    "esm": {"mask_token_id": 32, "pad_token_id": 1, "vocab_size": VOCABULARY},
    "fun_asr_nano": {"adaptor_config": {"intermediate_size": 16}},
    "gemma4_assistant": {"text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}},
    "gradium_phonon_tts": {"flow_head_config": {"condition_dim": HIDDEN}},
    "layoutlmv3": {"coordinate_size": 10, "shape_size": 12},
    "lilt": {"hidden_size": 96},
    "llama4": {
        "vision_config": {
            "intermediate_size": 4 * HIDDEN,
            "projector_input_dim": HIDDEN,
            "projector_output_dim": HIDDEN,
        }
    },
    "llama4_vision_model": {
        "intermediate_size": 4 * HIDDEN,
        "projector_input_dim": HIDDEN,
        "projector_output_dim": HIDDEN,
    },
    "mamba2": {"num_heads": 8},
    "mistral4": {"rope_parameters": {"partial_rotary_factor": 1 / 3}},
    "moonshine_streaming": {"num_key_value_heads": HEADS},
    "pocket_tts": {"flow_head_config": {"condition_dim": HIDDEN}},
    "pvt": {"image_size": 4 * IMAGE},
    "siglip": {"text_config": {"projection_size": HIDDEN}},
}
"""What a type insists on and neither its default nor the rule gives."""


NOT_EAGER = {"nemotron3_5_asr", "nemotron_asr_streaming", "nemotron_asr_streaming_encoder"}
"""Give NaN with eager attention in transformers 5.23: they take its additive mask for a boolean one."""


def model_types() -> list[str]:
    """All model types of the installed transformers."""
    return sorted(CONFIG_MAPPING)


def tiny_model(model_type: str, *, grown: bool = False) -> PreTrainedModel:
    """A randomly initialised tiny model of this type, or one `grown` to sizes whose time says something.

    Raises the first error where none can be built.
    """
    errors: list[Exception] = []
    for config in tiny_configs(model_type, errors, grow if grown else dict):
        for model_class in model_classes(type(config)):
            try:
                _refuse_giants(model_class, config)
                kind = "sdpa" if model_type in NOT_EAGER else "eager"
                model = model_class._from_config(config, attn_implementation=kind).eval()
            except Exception as error:
                errors.append(error)
                continue
            _enliven(model)
            return model
    missing = next((error for error in errors if isinstance(error, ImportError)), None)
    if errors:
        raise missing or errors[0]
    raise LookupError(f"no model of its own: a part of {', '.join(parents(model_type)) or 'other models'}")


def tiny_configs(
    model_type: str, errors: list[Exception], change: Callable[[dict[str, Any]], dict[str, Any]] = dict
) -> Iterator[PreTrainedConfig]:
    """Configurations to try, the smallest first; `change` has the last word on their values."""
    kind, settings = CONFIG_MAPPING[model_type], SETTINGS.get(model_type, {})
    for options in (
        {"fields": True, "typed": True},
        {"fields": True, "typed": True, "filled": True},
        {"fields": True},
        {"typed": True},
        {},
    ):
        try:
            yield kind(**change(_merged(shrink(kind(), **options), settings)))
        except Exception as error:
            errors.append(error)
    yield kind(**change(settings))


GROWTH = {HIDDEN: 16, 96: 32, HEAD: 4, HEADS: 4, 8: 4, 128: 16, VOCABULARY: 50}
"""By what a size of `SIZES` is multiplied: two layers, 1,024 wide, sixteen heads of 64."""
GROWN_APART = {"coordinate_size": 16, "shape_size": 16, "projection_size": 16}  # widths unknown to the rule


def grow(values: dict[str, Any]) -> dict[str, Any]:
    """The constructor arguments of a tiny configuration, in sizes that keep a GPU busy; as many layers and experts."""
    made = dict(values)
    for name, value in values.items():
        if isinstance(value, dict):
            made[name] = grow(value)
        elif type(value) is int and name == "image_size":
            made[name] = 224
        elif type(value) is int and name in RATIOS_STAY and value > 1:
            made[name] = value * GROWTH[HEADS]
        elif type(value) is int and (value == SIZES.get(name) or name in GROWN_APART) and "expert" not in name:
            made[name] = value * GROWN_APART.get(name, GROWTH.get(value, 1))
    return made


def parents(model_type: str) -> list[str]:
    """Types whose configuration holds one of this type."""
    kind = CONFIG_MAPPING[model_type]
    return [
        name for name in model_types() if kind in (getattr(CONFIG_MAPPING[name], "sub_configs", None) or {}).values()
    ]


def _merged(values: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    nested = {
        name: _merged(values[name], value)
        for name, value in settings.items()
        if isinstance(value, dict) and isinstance(values.get(name), dict)
    }
    return values | settings | nested


def _refuse_giants(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> None:
    """Raise where the weights, counted on the meta device, would not be tiny."""
    with torch.device("meta"):
        model = model_class._from_config(config, attn_implementation="eager")
    count = sum(parameter.numel() for parameter in model.parameters())
    if count > MOST_PARAMETERS:
        raise ValueError(f"{count:,} parameters: its configuration does not shrink")


def model_classes(config_class: type) -> Iterator[type[PreTrainedModel]]:
    """Classes that this configuration builds: the base model, then others of the auto classes and of its module."""
    mappings = [name for name in vars(modeling_auto) if name.startswith("MODEL_") and name.endswith("MAPPING")]
    found: list[type] = []
    for mapping in sorted(mappings, key=lambda name: (name != "MODEL_MAPPING", mappings.index(name))):
        classes = getattr(modeling_auto, mapping).get(config_class, ())
        found += classes if isinstance(classes, tuple) else (classes,)
    package = importlib.import_module(config_class.__module__.rpartition(".")[0])
    own = []
    for entry in pkgutil.iter_modules(package.__path__):
        if entry.name.startswith("modeling_"):
            module = importlib.import_module(f"{package.__name__}.{entry.name}")
            own += [kind for kind in vars(module).values() if _builds(kind, module.__name__, config_class)]
    own.sort(key=lambda kind: ("For" in kind.__name__, len(kind.__name__)))
    yield from list(dict.fromkeys([*found, *own]))[:4]


def _builds(kind: object, module: str, config_class: type) -> bool:
    return (
        isinstance(kind, type)
        and issubclass(kind, PreTrainedModel)
        and kind.__module__ == module
        and kind.config_class is config_class
        and "forward" in vars(kind)
    )


def _enliven(model: PreTrainedModel) -> None:
    """Weights that keep the scale of what passes through; the usual start makes attention over few channels flat."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, Conv1D)):
            weight = module.weight
            fan_in = weight.shape[0] if isinstance(module, Conv1D) else weight[0].numel()
            gain = 2.0 if isinstance(module, nn.Conv2d) else 1.0  # a ReLU follows
            nn.init.normal_(weight, std=(gain / fan_in) ** 0.5)


def shrink(
    config: PreTrainedConfig, *, fields: bool = False, typed: bool = False, filled: bool = False, part: bool = False
) -> dict[str, Any]:
    """The constructor arguments of a smaller configuration of the same kind.

    Args:
        config: the default.
        fields: keep declared fields only; what the class derives from them it derives anew.
        typed: let parts name their `model_type`.
        filled: replace None where `FILLED` knows a value.
        part: this is a part of a configuration.
    """
    dropped = {"transformers_version", "architectures", "dtype", *STAGE_NAMES} | (
        set() if typed and part else {"model_type"}
    )
    values = {name: value for name, value in config.to_dict().items() if name not in dropped}
    if fields:
        known = {field.name for field in dataclasses.fields(config)} | {"per_layer_config", "model_type"}
        values = {name: value for name, value in values.items() if name in known}
    known = FILLED if filled else ALWAYS_FILLED
    values |= {name: known[name] for name, value in values.items() if value is None and name in known}
    original, kept = dict(values), _kept_layers(values)
    for name, value in original.items():
        inner = vars(config).get(name)
        if isinstance(inner, PreTrainedConfig):
            values[name] = shrink(inner, fields=fields, typed=typed, filled=filled, part=True)
        elif name == "per_layer_config":
            values[name] = _layer_overrides(value, kept, original)
        elif name in LAYER_COUNTS and kept:
            values[name] = len(kept)
        else:
            values[name] = _smaller(name, value, original, kept)
    if "qk_rope_head_dim" in values:
        values |= {name: size for name, size in (("head_dim", 8), ("qk_head_dim", 24)) if name in values}
        if "per_layer_config" in values:  # dots3_note: its head_dim is that of both parts
            values["per_layer_config"] = {n: o | {"head_dim": 24} for n, o in values["per_layer_config"].items()}
    if isinstance(values.get("patch_size"), int) and isinstance(values.get("image_size"), int):
        values["image_size"] = max(4 * IMAGE if _hierarchical(values) else IMAGE, 4 * values["patch_size"])
    return values


def _hierarchical(values: dict[str, Any]) -> bool:
    return any(isinstance(values.get(name), (list, tuple)) for name in STAGES)


def _kept_layers(values: dict[str, Any]) -> list[int]:
    """Numbers of the layers that stay where each layer has a type: the first of each, at least `LAYERS`."""
    types = values.get("layer_types") or values.get("layers_block_type") or values.get("layer_block_types") or []
    if not isinstance(types, list) or not types or _hierarchical(values):
        return []
    kept = [number for number, kind in enumerate(types) if kind not in types[:number]][:4]
    return sorted({*kept, *[number for number in range(len(types)) if number not in kept][: LAYERS - len(kept)]})


def _layer_overrides(value: Any, kept: list[int], values: dict[str, Any]) -> dict[int, Any]:
    """What differs from layer to layer, for the layers that stay."""
    by_number = {int(number): overrides for number, overrides in dict(value).items()}
    return {
        position: {name: _smaller(name, inner, values, []) for name, inner in by_number[number].items()}
        for position, number in enumerate(kept)
        if number in by_number
    }


def _smaller(name: str, value: Any, values: dict[str, Any], kept: list[int]) -> Any:
    """One value of a configuration, shrunk by its name and kind."""
    hierarchical = _hierarchical(values)
    if name.endswith(("token_id", "token_index")):
        return _token(name, value)
    if name == "window_size" and type(value) is int:
        return 4
    if type(value) is int and name in SIZES:
        return value if hierarchical and SIZES[name] in (HIDDEN, HEADS, HEAD, LAYERS) else _size(name, value, values)
    if isinstance(value, list):
        return _list(name, value, values, kept, hierarchical)
    if name == "partial_rotary_factor" and "qk_rope_head_dim" in values:
        return 1.0
    return _rope(value) if isinstance(value, dict) else value


def _token(name: str, value: Any) -> Any:
    if isinstance(value, list):
        return value[0] % VOCABULARY if value else None
    return 100 + sum(map(ord, name)) % 50 if isinstance(value, int) and value >= VOCABULARY else value


def _list(name: str, value: list[Any], values: dict[str, Any], kept: list[int], hierarchical: bool) -> list[Any]:
    layers = next((values[n] for n in LAYER_COUNTS if type(values.get(n)) is int), None)
    if name == "attn_layer_indices":
        return [1]
    if name == "depths":
        return [1] * len(value)
    if layers is None or len(value) != layers or hierarchical:
        return value
    return [value[number] for number in kept] if kept else _shorter(value)


def _size(name: str, value: int, values: dict[str, Any]) -> int:
    if value == 0:
        return 0
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
