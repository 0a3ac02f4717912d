"""What merging did, layer by layer, and what the weights' dtype kept of it."""

from dataclasses import dataclass, field

__all__ = ["EATEN", "MergeReport", "MergedLayer"]

EATEN = 0.9  # below this kept share a merge warns


@dataclass(frozen=True)
class MergedLayer:
    """What one fold did.

    Args:
        name: path of the attention module.
        into: the module whose weights took the metric.
        kept: share of the learned change that is left after rounding to the weight's dtype, 1 - ‖error‖ / ‖change‖.
        largest_change: largest change of a single weight.
    """

    name: str
    into: str
    kept: float
    largest_change: float


@dataclass(frozen=True)
class MergeReport:
    """What `merge` did, layer by layer, and which layers stayed unmerged (only with `partial=True`) and why."""

    layers: list[MergedLayer] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def kept(self) -> float:
        """The worst layer's share."""
        return min((layer.kept for layer in self.layers), default=1.0)

    def __str__(self) -> str:
        lines = [f"{'layer':<48} {'kept':>7} {'largest change':>15}  into"]
        for layer in self.layers:
            lines.append(f"{layer.name:<48} {layer.kept:>7.1%} {layer.largest_change:>15.3g}  {layer.into}")
        lines += [f"{name:<48} not merged: {reason}" for name, reason in self.refused.items()]
        return "\n".join(lines)
