"""QueryMetric: the child module of a patched attention layer that holds its metrics and folds them into the query.

It hangs below the layer as `gssf`, so the layer's own parameters keep their names in `state_dict`. Its hooks are bound
methods: a deep copy, a pickle or an EMA copy of the model carries its own metrics. While it is disabled, or where the
active adapter does not cover this layer, the hooks change nothing at all.
"""

from typing import cast

from jaxtyping import Float
from torch import Tensor, nn

from gssf_plug.attention.candidates import Candidate
from gssf_plug.attention.heads import HeadView
from gssf_plug.attention.layouts import resolve
from gssf_plug.attention.sites import OutputSite, shadow, unshadow
from gssf_plug.metric import GSSFMetric

__all__ = ["CHILD", "QueryMetric"]

CHILD = "gssf"
OUTPUT = "output"


class QueryMetric(nn.Module):
    """The metrics of one attention layer, one per adapter, and the hooks that apply the active one.

    Args:
        candidate: the proven layout.

    Shape:
        rows (…, heads·size) -> (…, heads·size); a metric of `size` channels is shared by all heads.
    """

    def __init__(self, candidate: Candidate) -> None:
        super().__init__()
        site = candidate.query
        self.layout, self.norm, self.path, self.heads = (
            candidate.layout.name,
            candidate.norm,
            site.path,
            candidate.heads,
        )
        self.weights = () if isinstance(site, OutputSite) else tuple(site.views)
        views = {OUTPUT: site.view} if isinstance(site, OutputSite) else site.views
        self.views = nn.ModuleDict(views)
        self.adapters = nn.ModuleDict()
        self.active: str | None = None
        self.enabled = True

    def metric(self, adapter_name: str | None = None) -> GSSFMetric | None:
        """The metric of an adapter, default the active one; None where it does not cover this layer."""
        name = self.active if adapter_name is None else adapter_name
        return cast(GSSFMetric, self.adapters[name]) if name is not None and name in self.adapters else None

    def view(self, name: str = OUTPUT) -> HeadView:
        """Where the heads lie in the site's output, or in its parameter `name`."""
        return cast(HeadView, self.views[name])

    def fold(self, metric: GSSFMetric, rows: Float[Tensor, "... channels"]) -> Float[Tensor, "... channels"]:
        """Each head's query times its matrix."""
        if metric.dim == rows.shape[-1]:
            return metric.fold(rows)
        return metric.fold(rows.unflatten(-1, (self.heads.query, self.heads.size))).flatten(-2)

    def attach(self, owner: nn.Module) -> None:
        """Become a child of the attention module `owner` and register the hooks."""
        owner.add_module(CHILD, self)
        if not self.weights:
            self.site(owner).register_forward_hook(self.change_output)
            return
        owner.register_forward_pre_hook(self.change_weights)
        owner.register_forward_hook(self.restore_weights, always_call=True)

    def detach(self, owner: nn.Module) -> None:
        """Undo `attach`."""
        for module in {self.site(owner), owner}:
            for hooks in (module._forward_hooks, module._forward_pre_hooks):
                for key in [key for key, hook in hooks.items() if getattr(hook, "__self__", None) is self]:
                    hooks.pop(key)
                    module._forward_hooks_always_called.pop(key, None)
        delattr(owner, CHILD)

    def site(self, owner: nn.Module) -> nn.Module:
        """The module whose output is changed, or which holds the weights."""
        found = resolve(owner, self.path) if self.path else owner
        assert isinstance(found, nn.Module)
        return found

    def change_output(self, module: nn.Module, arguments: object, output: Tensor) -> Tensor | None:
        """Forward hook of the projection or the query norm."""
        metric = self.metric() if self.enabled else None
        if metric is None:
            return None
        view = self.view()
        return view.put(output, self.fold(metric, view.take(output)))

    def change_weights(self, owner: nn.Module, arguments: object) -> None:
        """Forward pre-hook where the layer uses its weight without calling a projection."""
        metric = self.metric() if self.enabled else None
        if metric is not None:
            site = self.site(owner)
            for name in self.weights:
                weight, view = site._parameters[name], self.view(name)
                assert weight is not None
                shadow(site, name, view.put(weight, self.fold(metric, view.take(weight))).contiguous())

    def restore_weights(self, owner: nn.Module, arguments: object, output: object) -> None:
        """Forward hook, also called after an error."""
        for name in self.weights:
            unshadow(self.site(owner), name)

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"{self.layout}, {self.heads.query} heads of {self.heads.size}, active={self.active!r}"
