"""patch_attention: the metric in the place of a pretrained model's attention scores, qᵀk becoming qᵀAk.

The metric multiplies the query, never the keys, so every kernel, mask and cache goes on as it was.
Nothing is touched before everything is checked: layouts proven, shapes fitting, names free. What is attached can be
disabled, merged into plain weights, and removed without a trace.
"""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized
from transformers import PreTrainedModel

from gssf_plug.attention.callback import refuse_loss
from gssf_plug.attention.discovery.attention_module import AttentionModule, select
from gssf_plug.attention.discovery.probe import SILENT
from gssf_plug.attention.discovery.prober import Prober
from gssf_plug.attention.handle import AttentionPatch
from gssf_plug.attention.options import AdapterOptions, check_adapter_name, check_dtype, check_example, check_places
from gssf_plug.attention.placement import get_device, is_offloaded, is_sharded
from gssf_plug.attention.query_layer import CHILD, LayerMetric, notice_hooks
from gssf_plug.attention.saving import save_with_adapters
from gssf_plug.attention.sites import QueryNorm, Sites, make_metric_layers, patchable_modules
from gssf_plug.errors import ArgumentError
from gssf_plug.metric import GSSFMetric, Term

__all__ = ["attach", "check_model", "patch_attention"]

logger = logging.getLogger(__name__)

UNREACHED = "the model runs it, but no gradient of the model's outputs reaches it"


def patch_attention(
    model: nn.Module,
    *,
    terms: Sequence[Term] = ("diagonal", "block_diagonal"),
    block_size: int = 8,
    layers: Sequence[str | int] | None = None,
    per_head: bool = True,
    sites: Sites = "projection",
    query_norm: QueryNorm = "after",
    dtype: torch.dtype | None = None,
    adapter_name: str = "default",
    example_inputs: Mapping[str, Any] | None = None,
) -> AttentionPatch:
    """Put a metric between the queries and the keys of `model`; its outputs stay the same, to the bit, until trained.

    Args:
        model: the pretrained model to patch: a model of Hugging Face, or any module whose attention a layout describes.
        terms: structures that are summed in each metric, as in `GSSFMetric`; "dense" is one full matrix for each head.
        block_size: side of a block, in channels; it must divide the head dimension of every patched layer.
        layers: which attention modules get a metric, by path, part of a path, glob or layer number; None takes all.
        per_head: True (default) gives each head a metric of its own; False lets the heads of a layer share one.
        sites: "projection" (default) changes the query before rotary embedding and cache, and can be merged. "score"
            changes it where it meets the key, through transformers' `AttentionInterface`: the logits are then exactly
            qᵀAk, and it can be merged only where nothing lies between that A does not commute with.
        query_norm: in models that normalise the query, with sites="projection", the metric stands "after" the norm (the
            true qᵀAk; only a diagonal shared by the heads can be merged) or "before" it (can be merged, then
            normalised).
        dtype: data type of the metric's parameters; None takes float32 (float64 in float64 models), also beside a
            half-precision model, since a learned 1 + 1e-3 is 1 in bfloat16.
        adapter_name: name of this set of metrics. On a patched model another name adds a further set and activates it.
        example_inputs: keyword arguments of `model.forward` with which layouts are proven; None makes some by the
            configuration.

    Returns:
        The handle of the patched model, which gives the parameters, and disables, merges, saves and removes the
        metrics.

    Raises:
        ArgumentError: the model cannot be patched, or an option breaks its rule; the model is untouched.

    References:
        GSSF, IEEE TIP 2024, arXiv 2410.15266; its place in attention is our choice. The diagonal term alone equals
        PEFT's IA3 on the query projection.
    """
    check_model(model)
    options = AdapterOptions.of(terms, block_size, per_head)
    check_places(sites, query_norm)
    check_dtype(dtype)
    check_example(example_inputs)
    check_adapter_name(adapter_name)
    prober = Prober(model, after_norm=query_norm == "after", example_inputs=example_inputs)
    metric_layers, left_alone = _find(prober, layers, sites)
    options.check_fits({path: layer.heads.head_dim for path, layer in metric_layers.items()})
    _check_new_name(adapter_name, metric_layers)
    with torch.inference_mode(False):  # inside of it parameters could never train
        metrics = {path: options.metric(layer.heads) for path, layer in metric_layers.items()}
        return attach(model, metric_layers, metrics, adapter_name, dtype, left_alone)


def _check_new_name(adapter_name: str, metric_layers: Mapping[str, LayerMetric]) -> None:
    """Refuse a name that an adapter of these layers has already."""
    if any(adapter_name in layer.adapters for layer in metric_layers.values()):
        rule, remedy = "be new; the model is patched already", "Remove that patch first, or choose another name"
        raise ArgumentError("adapter_name", rule, repr(adapter_name), f"{remedy} to add a second adapter.")


def attach(
    model: nn.Module,
    metric_layers: Mapping[str, LayerMetric],
    metrics: Mapping[str, GSSFMetric],
    adapter_name: str,
    dtype: torch.dtype | None,
    left_alone: Mapping[str, str],
) -> AttentionPatch:
    """Put checked metrics, one for each of `metric_layers`, into the model, and activate them."""
    notice_hooks()
    for name, query in metric_layers.items():
        owner = model.get_submodule(name)
        base = next((p for p in owner.parameters() if p.is_floating_point()), torch.zeros(()))
        device = get_device(owner)
        metric = metrics[name].to(device, dtype or torch.promote_types(base.dtype, torch.float32))
        query.adapters[adapter_name] = metric.train(owner.training)
        if getattr(owner, CHILD, None) is not query:
            query.to(device).train(owner.training)
            query.attach(owner)
    _watch_files(model)
    patch = AttentionPatch(model, left_alone)
    patch.set_adapter(adapter_name)
    return patch


def _watch_files(model: nn.Module) -> None:
    """From now on `model.load_state_dict` loses no metric, and `model.save_pretrained` writes the adapters, too."""
    hooks = model._load_state_dict_pre_hooks.values()
    if not any(getattr(hook, "hook", None) is refuse_loss for hook in hooks):
        model.register_load_state_dict_pre_hook(refuse_loss)
    if isinstance(model, PreTrainedModel) and "save_pretrained" not in vars(model):
        # of this model alone: the class and its other models keep their method
        model.__dict__["save_pretrained"] = partial(save_with_adapters, model)


def check_model(model: nn.Module) -> None:
    """Refuse what cannot be patched as it is: no module, compiled, traced, wrapped, sharded, on the meta device."""
    if not isinstance(model, nn.Module):
        raise ArgumentError("model", "be a torch.nn.Module", type(model).__name__, "Pass the model itself.")
    kind = type(model).__name__
    if kind in ("OptimizedModule", "DistributedDataParallel", "DataParallel", "FullyShardedDataParallel"):
        inner = "model._orig_mod" if kind == "OptimizedModule" else "model.module"
        raise ArgumentError(
            "model",
            "be patched before it is compiled or wrapped",
            f"a {kind}",
            f"Patch {inner} (or the model you wrapped) first, then compile or wrap it.",
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise ArgumentError("model", "be patched before it is traced or scripted", f"a {kind}", "Patch, then trace.")
    _check_weights(model)


def _check_weights(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention) and is_parametrized(module):
            raise ArgumentError(
                "model",
                "have nn.MultiheadAttention with weights of its own",
                f"a parametrisation that computes them at '{name}'",
                "Call torch.nn.utils.parametrize.remove_parametrizations on it first.",
            )
    sharded = next((name for name, value in model.named_parameters() if is_sharded(value)), None)
    if sharded is not None:
        raise ArgumentError(
            "model",
            "be patched before it is sharded",
            f"'{sharded}' as a DTensor (fully_shard or tensor parallel)",
            "For fully_shard: patch the whole model first; the metrics are sharded with it. For tensor parallel: merge "
            "into the whole model, and split the merged one.",
        )
    if any(p.is_meta for m in model.modules() if not is_offloaded(m) for p in m.parameters(recurse=False)):
        raise ArgumentError(
            "model", "have its weights in memory", "parameters on the meta device", "Load the weights first."
        )


def _find(
    prober: Prober, layers: Sequence[str | int] | None, sites: Sites
) -> tuple[dict[str, LayerMetric], dict[str, str]]:
    """The layers that take a metric, and why others are left alone; refuses what is not for the caller to overlook."""
    modules = patchable_modules(prober.model, sites)
    if not modules:
        raise ArgumentError(
            "model",
            "have attention with a query and a key that a layout describes",
            f"a {type(prober.model).__name__} without",
            "If it has attention of its own kind, declare it with gssf_plug.attention.layouts.register(Layout(...)).",
        )
    chosen = select(modules, layers)
    found = make_metric_layers(prober, chosen, sites, follow=modules)
    refused = [module for module in chosen.values() if module.verdict == "refused"]
    missed = [module for module in chosen.values() if module.verdict == "out of reach"]
    if refused or (missed and (layers is not None or not found)):
        raise _refusal(refused or missed, sites, prober.example_inputs is not None)
    if sites == "projection" and layers is not None:
        _check_unshared(chosen, modules)
    for path in prober.without_gradient(modules) & found.keys():
        chosen[path].decide("left alone", UNREACHED)
        missed.append(chosen[path])
        del found[path]
    if not found:
        name, why = missed[0].path, missed[0].reason
        raise ArgumentError("layers", "name attention that can learn", f"'{name}', where {why}", "Name other layers.")
    if missed:
        first, why = missed[0].path, missed[0].reason
        logger.warning("patch_attention leaves modules alone (%d), such as '%s': %s", len(missed), first, why)
    left_alone = {module.path: module.reason for module in missed}
    left_alone |= {path: module.reason for path, module in chosen.items() if module.verdict == "left alone"}
    return found, left_alone | {path: "not among `layers`" for path in modules if path not in chosen}


def _check_unshared(chosen: Mapping[str, AttentionModule], modules: Mapping[str, AttentionModule]) -> None:
    """Refuse to change a projection that a module beyond `chosen` uses, too."""
    for path, module in chosen.items():
        sharing = [p for p, other in modules.items() if p not in chosen and module.shares_its_query_with(other)]
        if sharing:
            raise ArgumentError(
                "layers",
                "name all attention modules that share a query projection, or none of them",
                f"'{path}' without '{sharing[0]}', whose query the same '{module.query_path}' makes",
                f"Name '{sharing[0]}', too: one metric then acts for both. Or use sites='score'.",
            )


def _refusal(refused: Sequence[AttentionModule], sites: Sites, by_example: bool) -> ArgumentError:
    name, reason = refused[0].path, refused[0].reason
    more = f" ({len(refused) - 1} more like it)" if len(refused) > 1 else ""
    if sites == "score":
        rule, remedy = "let the metric into its scores", "Use sites='projection', or leave it out with `layers`."
        return ArgumentError("model", rule, f"'{name}'{more}, where {reason}", remedy)
    if by_example and SILENT in reason:
        return ArgumentError(
            "example_inputs",
            "show each layer two or more tokens to attend to",
            f"some with which '{name}'{more} was not proven: {reason}",
            "Pass longer ones, or leave example_inputs out. Else declare the layout with layouts.register(...).",
        )
    return ArgumentError(
        "model",
        "have attention whose layout can be proven",
        f"'{name}'{more}, where {reason}",
        "Declare its layout with gssf_plug.attention.layouts.register(Layout(...)), or patch without it: `layers` "
        "names the modules to patch.",
    )
