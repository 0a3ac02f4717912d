"""A patched model in a table: a row for each layer, then what was left alone, and why."""

from collections.abc import Mapping

from gssf_plug.attention.merging.fold import Fold
from gssf_plug.attention.merging.plan import PatchedLayer
from gssf_plug.attention.query_layer import CHILD

__all__ = ["table"]


def table(
    layers: Mapping[str, PatchedLayer],
    folds: Mapping[str, Fold],
    refused: Mapping[str, str],
    lost: Mapping[str, str],
    left_alone: Mapping[str, str],
) -> str:
    """Site, heads, parameters of the active adapter, whether it acts now, and whether it merges.

    Args:
        layers: the patched layers by path.
        folds: the layers that would merge, with their folds.
        refused: the reason of each layer that would not merge.
        lost: the reason of each layer whose metric cannot act any more.
        left_alone: the reason of each attention module that is not patched.
    """
    rows = [f"{'layer':<44} {'site':<30} {'heads':>9} {'parameters':>11}  {'acting':<8} mergeable"]
    total, adapter = 0, next(iter(layers.values())).query.active
    for name, layer in layers.items():
        query, metric = layer.metric_layer, layer.metric_layer.metric()
        site = f"after {query.norm}" if query.norm else query.layout
        count = sum(parameter.numel() for parameter in metric.parameters()) if metric else 0
        state = "merged" if layer.fold else "yes" if name in folds else refused.get(name, "not in this adapter")
        state, acting = lost.get(name, state), _acting(layer, name in lost)
        heads = f"{query.heads.query_heads:>4}×{query.heads.head_dim:<4}"
        rows.append(f"{name:<44} {site:<30} {heads} {count:>11,}  {acting:<8} {state}")
        total += count
    rows += [f"{name:<44} left alone: {reason}" for name, reason in left_alone.items()]
    rows.append(f"{len(layers)} layers, {total:,} parameters in adapter '{adapter}'")
    return "\n".join(rows)


def _acting(layer: PatchedLayer, lost: bool) -> str:
    """Whether the layer's metric acts at this moment, as a word for the table."""
    if not layer.metric_layer.enabled or layer.metric_layer.metric() is None:
        return "no"
    if layer.fold is not None:
        return "merged"
    if layer.owner._modules.get(CHILD) is not layer.metric_layer:
        return "no"
    return "lost" if lost else "folded" if layer.stand_in is not None else "yes"
