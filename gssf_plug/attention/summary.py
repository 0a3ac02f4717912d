"""A patched model in a table: a row for each layer, then what was left alone, and why."""

from collections.abc import Mapping

from gssf_plug.attention.merging.fold import Fold
from gssf_plug.attention.merging.plan import PatchedLayer

__all__ = ["table"]


def table(
    layers: Mapping[str, PatchedLayer],
    folds: Mapping[str, Fold],
    refused: Mapping[str, str],
    left_alone: Mapping[str, str],
    adapter_name: str,
) -> str:
    """Site, heads, parameters of the active adapter, and whether it merges.

    Args:
        layers: the patched layers by path.
        folds: those that would merge.
        refused: why others would not.
        left_alone: attention modules that are not patched, and why.
        adapter_name: the active one.
    """
    rows, total = [f"{'layer':<44} {'site':<30} {'heads':>9} {'parameters':>11}  mergeable"], 0
    for name, layer in layers.items():
        query, metric = layer.query, layer.query.metric()
        site = f"after {query.norm}" if query.norm else query.layout
        count = sum(parameter.numel() for parameter in metric.parameters()) if metric else 0
        state = "merged" if layer.fold else "yes" if name in folds else refused.get(name, "not in this adapter")
        rows.append(
            f"{name:<44} {site:<30} {query.heads.query_heads:>4}×{query.heads.head_dim:<4} {count:>11,}  {state}"
        )
        total += count
    rows += [f"{name:<44} left alone: {reason}" for name, reason in left_alone.items()]
    rows.append(f"{len(layers)} layers, {total:,} parameters in adapter '{adapter_name}'")
    return "\n".join(rows)
