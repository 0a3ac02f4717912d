"""patch_attention: the metric in the place of a pretrained model's attention scores, qᵀk becoming qᵀAk.

The metric multiplies the query, never the keys, so every kernel, mask and cache goes on as it was.
Nothing is touched before everything is checked: layouts proven, shapes fitting, names free. What is attached can be
disabled, merged into plain weights, and removed without a trace.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from gssf_plug.attention.discovery.discover import attention_modules, select
from gssf_plug.attention.discovery.gradients import without_gradient
from gssf_plug.attention.discovery.probe import SILENT
from gssf_plug.attention.handle import AttentionPatch
from gssf_plug.attention.options import AdapterOptions, check_adapter_name, check_dtype, check_places
from gssf_plug.attention.placement import device_of, is_offloaded, is_sharded
from gssf_plug.attention.query_layer import CHILD, notice_hooks
from gssf_plug.attention.sites import Places, QueryNorm, Sites, find_places, score_modules
from gssf_plug.errors import ArgumentError
from gssf_plug.metric import GSSFMetric
from gssf_plug.metric.metric import Term

__all__ = ["attach", "check_model", "patch_attention"]

logger = logging.getLogger(__name__)


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
        model: a pretrained model (Hugging Face, or any module whose attention a layout describes).
        terms: structures of each metric, as in `GSSFMetric`; "dense" is one full matrix per head.
        block_size: side of a block; divides the head dimension.
        layers: which attention modules: paths, parts of paths, globs, layer numbers; default all.
        per_head: a metric for each head (True), or one shared by the heads of a layer.
        sites: "projection" changes the query before rotary embedding and cache, which merges. "score" changes it where
            it meets the key, through transformers' `AttentionInterface`: exactly qᵀAk in the logits of every model,
            which merges only where nothing lies between that A does not commute with.
        query_norm: with sites="projection", in models that normalise the query, put the metric "after" the norm (true
            qᵀAk; only a diagonal shared by the heads can be merged) or "before" it (mergeable, then renormalised).
        dtype: of the metric's parameters; default float32 (float64 for float64 models), also beside a half-precision
            model, since a learned 1 + 1e-3 is 1 in bfloat16.
        adapter_name: name of this set of metrics. On a patched model another name adds a further set and activates it.
        example_inputs: keyword arguments for `model.forward` that the probe uses; default: made from the configuration.

    Returns:
        The handle: summary, parameters, disable, merge, save, remove.

    Raises:
        ArgumentError: names the first problem; the model is untouched.

    References:
        GSSF, IEEE TIP 2024, arXiv 2410.15266; its place in attention is our choice. The diagonal term alone equals
        PEFT's IA3 on the query projection.
    """
    check_model(model)
    options = AdapterOptions.of(terms, block_size, per_head)
    check_places(sites, query_norm)
    check_dtype(dtype)
    check_adapter_name(adapter_name)
    places = _places(model, layers, sites, query_norm, example_inputs)
    options.check_fits({name: query.heads.size for name, query in places.metrics.items()})
    for query in places.metrics.values():
        if adapter_name in query.adapters:
            raise ArgumentError(
                "adapter_name",
                "be new; the model is patched already",
                repr(adapter_name),
                "Remove that patch first, or choose another name to add a second adapter.",
            )
    with torch.inference_mode(False):  # inside of it parameters could never train
        metrics = {name: options.metric(query.heads) for name, query in places.metrics.items()}
        return attach(model, places, metrics, adapter_name, dtype)


def attach(
    model: nn.Module,
    places: Places,
    metrics: Mapping[str, GSSFMetric],
    adapter_name: str,
    dtype: torch.dtype | None,
) -> AttentionPatch:
    """Put checked metrics into checked places, and activate them."""
    notice_hooks()
    for name, query in places.metrics.items():
        owner = model.get_submodule(name)
        base = next((p for p in owner.parameters() if p.is_floating_point()), torch.zeros(()))
        device = device_of(owner)
        metric = metrics[name].to(device, dtype or torch.promote_types(base.dtype, torch.float32))
        query.adapters[adapter_name] = metric.train(owner.training)
        if getattr(owner, CHILD, None) is not query:
            query.to(device).train(owner.training)
            query.attach(owner)
    patch = AttentionPatch(model, places.left_alone)
    patch.set_adapter(adapter_name)
    return patch


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
            "Patch the whole model first, then call fully_shard on its layers; the metrics are sharded with them.",
        )
    if any(p.is_meta for m in model.modules() if not is_offloaded(m) for p in m.parameters(recurse=False)):
        raise ArgumentError(
            "model", "have its weights in memory", "parameters on the meta device", "Load the weights first."
        )


def _places(
    model: nn.Module,
    layers: Sequence[str | int] | None,
    sites: Sites,
    query_norm: QueryNorm,
    example_inputs: Mapping[str, Any] | None,
) -> Places:
    """The places to patch, and why the others are left alone; refuses where that is not for the caller to overlook."""
    owners = score_modules(model) if sites == "score" else attention_modules(model)
    if not owners:
        raise ArgumentError(
            "model",
            "have attention with a query and a key that a layout describes",
            f"a {type(model).__name__} without",
            "If it has attention of its own kind, declare it with gssf_plug.attention.layouts.register(Layout(...)).",
        )
    chosen = select(owners, layers)
    found = find_places(model, chosen, sites, query_norm, example_inputs)
    asked_for = found.out_of_reach if layers is not None or not found.metrics else {}
    if found.refused or asked_for:
        raise _refusal(found.refused or asked_for, sites, example_inputs is not None)
    unheard = without_gradient(model, owners, example_inputs)
    metrics = {name: metric for name, metric in found.metrics.items() if name not in unheard}
    if not metrics:
        name, why = next(iter(unheard.items()))
        raise ArgumentError("layers", "name attention that can learn", f"'{name}', where {why}", "Name other layers.")
    missed = found.out_of_reach | {name: why for name, why in unheard.items() if name in found.metrics}
    if missed:
        first, why = next(iter(missed.items()))
        logger.warning("patch_attention leaves modules alone (%d), such as '%s': %s", len(missed), first, why)
    others = {name: "not among `layers`" for name in owners.keys() - chosen.keys()}
    return Places(metrics, left_alone=missed | found.left_alone | others)


def _refusal(refused: Mapping[str, str], sites: Sites, by_example: bool) -> ArgumentError:
    name, reason = next(iter(refused.items()))
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
