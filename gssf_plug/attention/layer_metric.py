"""LayerMetric: the child module of a patched attention layer that holds its metrics, one per adapter.

It hangs below the layer as `gssf`, so the layer's own parameters keep their names in `state_dict`. `QueryMetric` puts
the active metric at the query's projection or norm, `ScoreMetric` into the score itself. What it needs it finds in the
layer, so a deep copy, a pickle or an EMA copy of the model carries its own metrics. While it is disabled, or where the
active adapter does not cover this layer, it changes nothing at all.
"""

from typing import cast

from jaxtyping import Float
from torch import Tensor, nn

from gssf_plug.attention.packing import Heads
from gssf_plug.metric import GSSFMetric

__all__ = ["CHILD", "LayerMetric"]

CHILD = "gssf"


class LayerMetric(nn.Module):
    """The metrics of one attention layer and which of them acts. Subclasses say where.

    Args:
        layout: name of the place, shown in summaries and kept in files.
        heads: numbers and widths of the heads.
        norm: path of the query norm that the metric follows; None elsewhere.

    Shape:
        rows (…, heads·size) -> (…, heads·size); a metric of `size` channels is shared by all heads.
    """

    def __init__(self, layout: str, heads: Heads, norm: str | None) -> None:
        super().__init__()
        self.layout, self.heads, self.norm = layout, heads, norm
        self.adapters = nn.ModuleDict()
        self.active: str | None = None
        self.enabled = True

    def metric(self, adapter_name: str | None = None) -> GSSFMetric | None:
        """The metric of an adapter, default the active one; None where it does not cover this layer."""
        name = self.active if adapter_name is None else adapter_name
        adapters = cast(nn.ModuleDict, self._modules["adapters"])._modules  # straight: at every layer and token
        return cast("GSSFMetric | None", adapters.get(name)) if name is not None else None

    def acting(self) -> GSSFMetric | None:
        """The metric that acts now; None while disabled."""
        return self.metric() if self.enabled else None

    def fold(self, metric: GSSFMetric, rows: Float[Tensor, "... channels"]) -> Float[Tensor, "... channels"]:
        """Each head's query times its matrix."""
        if metric.dim == rows.shape[-1]:
            return metric.fold(rows)
        return metric.fold(rows.unflatten(-1, (self.heads.query, self.heads.size))).flatten(-2)

    def attach(self, owner: nn.Module) -> None:
        """Become a child of the attention module `owner`, and act."""
        raise NotImplementedError

    def detach(self, owner: nn.Module) -> None:
        """Undo `attach`."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"{self.layout}, {self.heads.query} heads of {self.heads.size}, active={self.active!r}"
