"""load_attention: put a saved adapter onto a model, strictly."""

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gssf_plug.adapters import AdapterKind, register
from gssf_plug.arguments import check_path, checked_flag
from gssf_plug.attention.discovery.prober import Prober
from gssf_plug.attention.handle import AttentionPatch
from gssf_plug.attention.options import check_adapter_name, check_dtype, check_example
from gssf_plug.attention.patch import attach, check_model
from gssf_plug.attention.placement import fill, is_offloaded
from gssf_plug.attention.query_layer import LayerMetric
from gssf_plug.attention.saving import BESIDE, FORMAT, describe_patch, save_as_part
from gssf_plug.attention.score_layer import SCORE
from gssf_plug.attention.sites import Sites, make_metric_layers, patchable_modules
from gssf_plug.errors import ArgumentError, CheckpointError, near_matches
from gssf_plug.files import locate, read_folder
from gssf_plug.metric import GSSFMetric
from gssf_plug.wrappers import plain_path

__all__ = ["load_attention"]

REMEDY = "Load it onto the model that it was trained on."
OTHERWISE = "Load it under a new name, without hot_swap."
RECORD: dict[str, tuple[type, ...]] = {
    "layout": (str,),
    "query_norm": (str, type(None)),
    "heads": (int,),
    "head_size": (int,),
    "metric": (dict,),
}


def load_attention(
    model: nn.Module,
    path: str | PathLike[str],
    *,
    adapter_name: str = "default",
    hot_swap: bool = False,
    dtype: torch.dtype | None = None,
    example_inputs: Mapping[str, Any] | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> AttentionPatch:
    """Patch `model` with an adapter that `AttentionPatch.save_pretrained` wrote, and activate it.

    Args:
        model: the base model that the adapter was trained on. On a patched model the adapter is added under a new name.
        path: folder or Hub id of an adapter; also a folder that `model.save_pretrained` of a patched model wrote.
        adapter_name: name of the adapter on this model, which need not be the one that it was saved under; default
            "default".
        hot_swap: True copies the values into the adapter of that name, which the model must hold with the same layers
            and structures. Parameters stay the same objects: nothing is compiled again, no optimizer is made again, and
            the model may be compiled, wrapped or sharded. The active adapter stays active. Default False.
        dtype: data type of the metric's parameters; None (default) keeps that of the file.
        example_inputs: keyword arguments of `model.forward` with which the layouts are proven, as in `patch_attention`.
        revision: branch, tag or commit on the Hub; None (default) takes the main branch.
        token: access token of the Hub, or True for the one that is stored on this machine.
        cache_dir: folder in which downloads are kept; None (default) takes that of huggingface_hub.
        local_files_only: True never asks the network and takes what was downloaded before. Default False.

    Raises:
        CheckpointError: the adapter is missing, damaged, or of another model. The message names the first mismatch; the
            model is untouched.
        ArgumentError: the model cannot be patched, it holds an adapter of that name already (with `hot_swap`: none), or
            an option is not of its type.
    """
    check_path("path", path)
    check_adapter_name(adapter_name)
    check_dtype(dtype)
    check_example(example_inputs)
    hot_swap = checked_flag("hot_swap", hot_swap)
    local_files_only = checked_flag("local_files_only", local_files_only)
    hub = {"revision": revision, "token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
    if hot_swap:
        patch = AttentionPatch(_unwrapped(model))
        _copy_into(patch, _read(patch.model, path, hub), adapter_name)
        return patch
    check_model(model)
    saved = _read(model, path, hub)
    norms = {record["query_norm"] for record in saved.records.values()}
    sites: Sites = "score" if {record["layout"] for record in saved.records.values()} == {SCORE} else "projection"
    here = patchable_modules(model, "score")
    modules = {path: here[path] for path in saved.records}
    prober = Prober(model, after_norm=bool(norms - {None}), example_inputs=example_inputs)
    metric_layers = make_metric_layers(prober, modules, sites)
    for path, record in saved.records.items():
        if path not in metric_layers:
            raise CheckpointError(saved.folder, f"needs the layer '{path}', where {modules[path].reason}", REMEDY)
        _check_fits(saved.folder, path, record, metric_layers[path])
        if adapter_name in metric_layers[path].adapters:
            remedy = "Choose another name, copy into that adapter with hot_swap=True, or remove that patch."
            raise ArgumentError("adapter_name", "be new on this model", repr(adapter_name), remedy)
    saved_dtype = next(iter(saved.metrics.values())).structures.parameters().__next__().dtype
    return attach(model, metric_layers, saved.metrics, adapter_name, dtype or saved_dtype, {})


def restore_as_part(model: nn.Module, folder: Path, record: Mapping[str, Any]) -> None:
    """Patch a plain part of a larger model with what `saving.save_as_part` wrote; `record` is `describe_patch`'s."""
    patches = [load_attention(model, folder / BESIDE / name, adapter_name=name) for name in record["names"]]
    patches[-1].set_adapter(record["active"])
    if not record["enabled"]:
        patches[-1].disable()


@dataclass(frozen=True)
class _Saved:
    """A folder that was read: what it says about each layer, and its metric, by the layer's path in this model."""

    folder: Path
    records: dict[str, dict[str, Any]]
    metrics: dict[str, GSSFMetric]


def _read(model: nn.Module, path: str | PathLike[str], hub: Mapping[str, Any]) -> _Saved:
    folder = locate(_beside(path), FORMAT, **hub)
    config, tensors = read_folder(folder, FORMAT)
    records = _records(config, folder)
    names = _paths_in(model, records, config, folder)
    metrics = {names[saved]: _metric(folder, saved, record, tensors) for saved, record in records.items()}
    _check_all_used(folder, records, tensors)
    return _Saved(folder, {names[saved]: record for saved, record in records.items()}, metrics)


def _beside(path: str | PathLike[str]) -> str | PathLike[str]:
    """The adapter in a folder that a patched model's `save_pretrained`, or a Trainer with its callback, wrote."""
    inside = Path(path) / BESIDE
    if (Path(path) / FORMAT.config).exists() or not inside.is_dir():
        return path
    adapters = sorted(inside.iterdir())
    if len(adapters) != 1:
        names = ", ".join(adapter.name for adapter in adapters)
        raise CheckpointError(path, f"holds {len(adapters)} adapters ({names})", f"Name one, such as {adapters[0]}.")
    return adapters[0]


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model inside `torch.compile`'s and DistributedDataParallel's wrappers."""
    while type(model).__name__ in ("OptimizedModule", "DistributedDataParallel"):
        inner: Any = getattr(model, "_orig_mod", None) or model.module
        model = inner
    return model


def _copy_into(patch: AttentionPatch, saved: _Saved, adapter_name: str) -> None:
    """Put the saved values into an adapter of the model, all or nothing."""
    if adapter_name not in patch.adapter_names:
        remedy = near_matches(adapter_name, patch.adapter_names)
        raise ArgumentError("adapter_name", "name an adapter that is there to swap", repr(adapter_name), remedy)
    here = {
        n: metric
        for n, layer in patch.layers.items()
        if (metric := layer.metric_layer.metric(adapter_name)) is not None
    }
    for name in here.keys() ^ saved.metrics.keys():
        which = "lacks" if name in here else "has"
        raise CheckpointError(
            saved.folder, f"{which} the layer '{name}', unlike the adapter it would replace", OTHERWISE
        )
    pairs = []
    for name, metric in here.items():
        if is_offloaded(metric):
            rule, remedy = "be in memory to be swapped", "Load the adapter before the model is offloaded."
            raise ArgumentError("model", rule, f"one whose metric at '{name}' is offloaded", remedy)
        _check_fits(saved.folder, name, saved.records[name], patch.layers[name].metric_layer)
        old, new = metric.state_dict(), saved.metrics[name].state_dict()
        shapes = [{key: tuple(tensor.shape) for key, tensor in state.items()} for state in (old, new)]
        if shapes[0] != shapes[1] or metric.file_config() != saved.metrics[name].file_config():
            raise CheckpointError(saved.folder, f"has another structure for '{name}' than the adapter", OTHERWISE)
        pairs += [(old[key], new[key]) for key in old]
    for tensor, value in pairs:
        fill(tensor, value)


def _records(config: Mapping[str, Any], folder: Path) -> dict[str, dict[str, Any]]:
    records = config.get("layers")
    if not isinstance(records, dict) or not records:
        raise CheckpointError(folder, "names no layers", "It is damaged; save it again.")
    for name, record in records.items():
        damaged = not isinstance(record, dict) or record.keys() != RECORD.keys()
        if damaged or any(type(record[key]) not in types for key, types in RECORD.items()):
            raise CheckpointError(folder, f"has a damaged record of the layer '{name}'", "Save it again.")
    return records


def _paths_in(model: nn.Module, records: Mapping[str, Any], config: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Path in `model` of each saved layer; a task head adds or drops the base model's prefix."""
    here = {plain_path(name): name for name in patchable_modules(model, "score")}  # files hold paths without wrappers
    prefix = f"{getattr(model, 'base_model_prefix', '') or ''}."
    for rename in (str, lambda name: prefix + name, lambda name: name.removeprefix(prefix), _behind_first):
        names = {saved: rename(saved) for saved in records}
        if all(name in here for name in names.values()):
            return {saved: here[name] for saved, name in names.items()}
    missing = next(name for name in records if name not in here)
    mine = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    raise CheckpointError(
        folder,
        f"was trained on a '{config.get('base_model_type')}' and needs the layer '{missing}', missing in this '{mine}'",
        f"{REMEDY} {near_matches(missing, here) if here else ''}".strip(),
    )


def _behind_first(name: str) -> str:
    return name.partition(".")[2]


def _check_fits(folder: Path, name: str, record: Mapping[str, Any], query: LayerMetric) -> None:
    pairs = (
        ("layout", record["layout"], query.layout),
        ("query_norm", record["query_norm"], query.norm),
        ("number of heads", record["heads"], query.heads.query_heads),
        ("head size", record["head_size"], query.heads.head_dim),
    )
    for what, saved, here in pairs:
        if saved != here:
            raise CheckpointError(folder, f"has {what} {saved!r} for '{name}' where the model has {here!r}", REMEDY)


def _metric(folder: Path, name: str, record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> GSSFMetric:
    # in files a tensor is called PATH|NAME
    own = {key.partition("|")[2]: tensor for key, tensor in tensors.items() if key.partition("|")[0] == name}
    try:
        metric = GSSFMetric.from_files(record["metric"], own, folder)
    except CheckpointError as error:
        raise CheckpointError(folder, f"does not hold together at '{name}': {error}", "Save it again.") from error
    if metric.dim not in (record["head_size"], record["heads"] * record["head_size"]):
        raise CheckpointError(folder, f"has a metric of {metric.dim} channels for '{name}'", REMEDY)
    return metric


def _check_all_used(folder: Path, records: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    for key in tensors:
        if key.partition("|")[0] not in records:
            raise CheckpointError(folder, f"has an unknown tensor '{key}'", "It is damaged; save it again.")


register("attention", AdapterKind(describe_patch, save_as_part, restore_as_part))
