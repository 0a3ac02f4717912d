"""The adapter alone on disk: one tensor per parameter, keyed by the path of its attention module.

Promises: written whole or not at all; loaded strictly: the base model's type, every layer, its layout, its heads and
every tensor must fit, and the first that does not is named before anything is attached. A base saved with or without
a task head (`bert.encoder…`, `encoder…`) is the same base.
"""

import logging
from collections.abc import Iterator, Mapping
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch import Tensor, nn

from gssf_plug.attention.placement import brought_in, fill, is_sharded, whole, writes
from gssf_plug.attention.query_layer import CHILD, LayerMetric
from gssf_plug.errors import ArgumentError, CheckpointError
from gssf_plug.files import CardFacts, Format, is_hub_id, read_folder, render_card, write_folder
from gssf_plug.wrappers import plain_path

__all__ = [
    "BESIDE",
    "FORMAT",
    "describe_patch",
    "layer_record",
    "metric_layers",
    "refill_adapter",
    "save_adapter",
    "save_as_part",
    "save_with_adapters",
]

FORMAT = Format("gssf-plug/attention", config="adapter_config.json", weights="adapter_model.safetensors")
BESIDE = "gssf"  # in a folder of a whole model or a checkpoint, holds a folder for each adapter
logger = logging.getLogger(__name__)
USAGE = """from gssf_plug.attention import load_attention

patch = load_attention(model, path)
patch.merge()  # optional: a plain model"""


def save_adapter(
    path: str | PathLike[str],
    model: nn.Module,
    queries: Mapping[str, LayerMetric],
    adapter_name: str,
    facts: CardFacts | None = None,
) -> None:
    """Write the metrics of `adapter_name` into the folder `path`; `facts` for the model card.

    Sharded metrics are gathered: then every process has to call this, the first one writes, and all wait for it.
    """
    covered = {name: query for name, query in queries.items() if query.metric(adapter_name) is not None}
    tensors: dict[str, Tensor] = {}
    for name, query in covered.items():
        metric = query.metric(adapter_name)
        assert metric is not None
        with brought_in(metric):
            tensors |= {f"{name}|{key}": tensor for key, tensor in metric.state_dict().items()}
    _check_values(covered, adapter_name, tensors)
    sharded = any(is_sharded(tensor) for tensor in tensors.values())
    tensors = {key: whole(tensor) for key, tensor in tensors.items()}
    config = {
        "base_model": getattr(model, "name_or_path", "") or None,
        "base_model_type": getattr(getattr(model, "config", None), "model_type", None),
        "base_model_class": type(model).__name__,
        "layers": {name: layer_record(query, adapter_name) for name, query in covered.items()},
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    if not sharded or writes():
        card = _card(config, tensors, facts)
        write_folder(path, FORMAT, config, tensors, card, replace_card=facts is not None, argument="path")
    if sharded:
        torch.distributed.barrier()


def save_with_adapters(model: nn.Module, save_directory: str | PathLike[str], *args: Any, **options: Any) -> None:
    """`model.save_pretrained` of a patched model: as always, and each adapter that is not merged in a folder beside."""
    cast(Any, type(model)).save_pretrained(model, save_directory, *args, **options)
    metrics = metric_layers(model)
    names = _adapter_names(metrics)
    if names and options.get("is_main_process", True):
        for name in names:
            save_adapter(Path(save_directory) / BESIDE / name, model, metrics, name)
        _say_who_reads_it(type(model).__name__)


def metric_layers(model: nn.Module) -> dict[str, LayerMetric]:
    """The metrics in `model`, by the path of their attention layer in the plain model."""
    found = ((plain_path(name), module._modules.get(CHILD)) for name, module in model.named_modules())
    return {name: child for name, child in found if isinstance(child, LayerMetric)}


def _adapter_names(layers: Mapping[str, LayerMetric]) -> list[str]:
    """Names of all adapters, in the order in which they came."""
    return list(dict.fromkeys(name for layer in layers.values() for name in layer.adapters))


def describe_patch(model: nn.Module) -> dict[str, Any] | None:
    """What a larger model's file says about this part of it: its adapters; None for a plain one."""
    layers = metric_layers(model)
    if not layers:
        return None
    first = next(iter(layers.values()))
    return {"names": _adapter_names(layers), "active": first.active, "enabled": first.enabled}


def save_as_part(model: nn.Module, folder: Path) -> None:
    """Write a patched part of a larger model: the base as if it were plain, and each adapter in `gssf/NAME` below."""
    own = tuple(f"{n}.{CHILD}.".lstrip(".") for n, module in model.named_modules() if CHILD in module._modules)
    base = {key: tensor for key, tensor in model.state_dict().items() if not key.startswith(own)}
    cast(Any, type(model)).save_pretrained(model, folder, state_dict=base)  # the instance's own would add the metrics
    layers = metric_layers(model)
    for name in _adapter_names(layers):
        save_adapter(folder / BESIDE / name, model, layers, name)


@cache
def _say_who_reads_it(kind: str) -> None:
    """Once for each class of models: converters (CTranslate2, GGUF, …) pass over keys that they do not know."""
    logger.warning(
        "save_pretrained of a patched %s: transformers and other readers of this folder see the bare model, without "
        "the metric. load_attention(model, folder) puts it back; for all others, patch.merge() first.",
        kind,
    )


def refill_adapter(path: str | PathLike[str], queries: Mapping[str, LayerMetric], adapter_name: str) -> None:
    """Copy the values in the folder `path` into the metrics of `adapter_name`, all or none."""
    _, tensors = read_folder(Path(path), FORMAT)
    own = {f"{name}|{key}": tensor for name, key, tensor in _state(queries, adapter_name)}
    wrong = next(
        (key for key in sorted(own.keys() | tensors.keys()) if not _alike(own.get(key), tensors.get(key))), None
    )
    if wrong is not None:
        raise CheckpointError(path, f"does not fit '{wrong}' of the adapter", "Load it with load_attention.")
    for key, tensor in own.items():
        fill(tensor, tensors[key])


def _state(queries: Mapping[str, LayerMetric], adapter_name: str) -> Iterator[tuple[str, str, Tensor]]:
    """Path of the layer, key in its metric, tensor."""
    for name, query in queries.items():
        metric = query.metric(adapter_name)
        if metric is not None:
            yield from ((name, key, tensor) for key, tensor in metric.state_dict().items())


def _check_values(queries: Mapping[str, LayerMetric], adapter_name: str, tensors: Mapping[str, Tensor]) -> None:
    """Refuse to write what loading would refuse, or worse, take: codes of a quantiser (nncf), NaN."""
    for key, tensor in tensors.items():
        path, _, name = key.partition("|")
        learned = name in dict(cast(nn.Module, queries[path].metric(adapter_name)).named_parameters())
        if learned and not tensor.is_floating_point():
            got, remedy = f"{tensor.dtype} codes", "A tool (nncf, …) has compressed it: save before, or merge first."
        elif tensor.is_floating_point() and not bool(whole(tensor.detach()).isfinite().all()):
            got, remedy = "NaN or infinite values", "The training diverged: go back to an earlier checkpoint."
        else:
            continue
        raise ArgumentError("patch", "hold finite floating-point values to be saved", f"{got} in '{key}'", remedy)


def _alike(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and one.shape == other.shape


def layer_record(query: LayerMetric, adapter_name: str) -> dict[str, Any]:
    """What a file says about one layer: its layout, its heads and its metric."""
    metric = query.metric(adapter_name)
    assert metric is not None
    return {
        "layout": query.layout,
        "query_norm": query.norm,
        "heads": query.heads.query_heads,
        "head_size": query.heads.head_dim,
        "metric": metric.file_config(),
    }


def _card(config: Mapping[str, Any], tensors: Mapping[str, Tensor], facts: CardFacts | None) -> str:
    """The card; its base model is the one that the model was loaded from, where that was on the Hub."""
    base = config["base_model"]
    on_hub = is_hub_id(base) and not Path(base).exists()
    count = sum(tensor.numel() for tensor in tensors.values())
    about = (
        "A learned metric between the queries and keys (qᵀAk; GSSF, IEEE TIP 2024, arXiv 2410.15266) of "
        f"{len(config['layers'])} attention layers of a {config['base_model_class']}: {count:,} parameters."
    )
    tags = ("gssf", "adapter", "attention")
    return render_card("GSSF attention adapter", about, USAGE, tags, facts, base_model=base if on_hub else None)
