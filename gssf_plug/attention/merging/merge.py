"""Merge all layers or none, take it back, and switch merged or folded layers off and on."""

import warnings
from collections.abc import Mapping

import torch
from torch import nn

from gssf_plug.attention.merging.fold import EATEN, MergeReport
from gssf_plug.attention.merging.plan import PatchedLayer, plan_folds
from gssf_plug.attention.merging.stand_in import StandIn
from gssf_plug.attention.query_layer import CHILD
from gssf_plug.errors import ArgumentError

__all__ = ["fold_for_a_while", "merge", "switch", "unfold", "unmerge"]

Layers = Mapping[str, PatchedLayer]
REST = "partial=True merges the layers that fold and leaves the others patched."


def merge(model: nn.Module, layers: Layers, *, partial: bool) -> MergeReport:
    """Fold the active metrics into the weights; every layer is planned and checked before any is changed."""
    folds, refused = plan_folds(model, layers)
    if refused and (not partial or not folds):
        raise _refusal(refused, len(folds), f"The model is unchanged. {REST}" if folds else "The model is unchanged.")
    report = MergeReport([fold.measure(name) for name, fold in folds.items()], refused)
    for name, fold in folds.items():
        layer = layers[name]
        layer.metric_layer.detach(layer.owner)
        fold.write()
        layer.fold = fold
    if report.kept < EATEN:
        worst = min(report.layers, key=lambda layer: layer.kept)
        warnings.warn(
            f"merging kept only {worst.kept:.0%} of the learned change at '{worst.name}': the weights' dtype "
            "rounds it away; merge into a float32 copy of the model (model.float()) to keep it",
            stacklevel=3,
        )
    return report


def unmerge(model: nn.Module, layers: Layers) -> None:
    """Put the replaced weights back bit for bit, and the metrics in."""
    newer = next((n for n, x in layers.items() if x.fold is not None and hasattr(x.owner, CHILD)), None)
    if newer is not None:
        rule, remedy = "be the last on its layers to be unmerged", "Remove the newer patch first."
        raise ArgumentError("patch", rule, f"a newer one at '{newer}'", remedy)
    written = {n: layer for n, layer in layers.items() if layer.fold is not None and layer.fold.written}
    _check_as_left(model, written, "unmerged")
    for name, layer in layers.items():
        if layer.fold is not None:
            if name in written:  # else disabled: what is there stays
                layer.fold.restore()
            layer.metric_layer.attach(layer.owner)
            layer.fold = None


def switch(model: nn.Module, layers: Layers, states: Mapping[str, bool]) -> None:
    """Let each layer act or not, merged and folded ones by showing the weights of the one or the other state."""
    turned = {n: layer for n, layer in layers.items() if layer.metric_layer.enabled != states[n]}
    _check_as_left(model, turned, "enabled or disabled while merged")
    for name, layer in turned.items():
        layer.metric_layer.enabled = states[name]
        if layer.fold is not None:
            layer.fold.write() if states[name] else layer.fold.restore()
        if layer.stand_in is not None:
            layer.stand_in.show() if states[name] else layer.stand_in.hide()


def fold_for_a_while(model: nn.Module, layers: Layers) -> None:
    """Let folded weights stand in for the real ones, and take the hooks out, at every layer or at none."""
    folds, refused = plan_folds(model, layers)
    if refused:
        raise _refusal(refused, len(folds), "Go on without patch.folded(): the patched model gives the same outputs.")
    holders = {
        p: (module, name) for module in model.modules() for name, p in module._parameters.items() if p is not None
    }
    for name, fold in folds.items():
        layer, metric = layers[name], layers[name].metric_layer.metric()
        assert metric is not None
        with torch.inference_mode(False):  # what is made inside of it could not be compared outside
            layer.stand_in = StandIn(fold, holders, metric)
        layer.metric_layer.unhook(layer.owner)
        layer.stand_in.show()


def unfold(layers: Layers) -> str | None:
    """Undo `fold_for_a_while`; gives the path of a layer where something was changed meanwhile."""
    stale = None
    for name, layer in layers.items():
        if layer.stand_in is not None:
            stale = name if layer.stand_in.stale() else stale
            layer.stand_in.hide()
            layer.stand_in = None
            layer.metric_layer.hook(layer.owner)
    return stale


def _refusal(refused: Mapping[str, str], folded: int, remedy: str) -> ArgumentError:
    name, reason = next(iter(refused.items()))
    return ArgumentError(
        "patch",
        "fold into the weights at every layer",
        f"'{name}' ({len(refused)} of {len(refused) + folded} layers), where {reason}",
        remedy,
    )


def _check_as_left(model: nn.Module, layers: Layers, action: str) -> None:
    """Refuse to overwrite weights that were changed since a fold wrote or restored them.

    Args:
        model: the model whose weights are looked at.
        layers: the layers whose folds are about to be written or restored.
        action: what is about to happen to the patch, for the message.

    Raises:
        ArgumentError: a weight has other values than the fold left. The message names the first one; nothing was
            changed.
    """
    held = {id(parameter): name for name, parameter in model.named_parameters()}
    for name, layer in layers.items():
        if layer.fold is None:
            continue
        gone = next((parameter for parameter in layer.fold.old if id(parameter) not in held), None)
        changed = gone if gone is not None else layer.fold.changed()
        if changed is not None:
            what = f"another parameter at '{name}'" if gone is not None else f"other values in '{held[id(changed)]}'"
            remedy = (
                "If another handle merged since, unmerge that one first. If you trained or loaded them, they stay: "
                "drop this handle, and patch anew."
                if layer.fold.written
                else "Keep them, and fold anew: patch.unmerge(), patch.enable(), patch.merge()."
            )
            raise ArgumentError("patch", f"find the weights as it left them to be {action}", what, remedy)
