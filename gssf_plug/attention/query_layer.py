"""QueryMetric: the metrics of one attention layer at its query, on the way out of the projection or of the query norm.

Its hooks are bound methods, so that copies of the model run their own. Where a layer hands its weight to a function
instead of calling a projection, the weight is shadowed for the time of the layer's forward; so is a bias of the query
that the layer adds by itself.

LayerMetric: the child module of a patched attention layer that holds its metrics, one per adapter.

It hangs below the layer as `gssf`, so the layer's own parameters keep their names in `state_dict`. `QueryMetric` puts
the active metric at the query's projection or norm, `ScoreMetric` into the score itself. What it needs it finds in the
layer, so a deep copy, a pickle or an EMA copy of the model carries its own metrics. While it is disabled, or where the
active adapter does not cover this layer, it changes nothing at all.

torch.compile beside hooks: compiled code must notice that a metric came or went.
"""

from collections.abc import Iterator
from typing import cast

import torch
import torch._dynamo.config as dynamo
from jaxtyping import Float
from torch import Tensor, nn

from gssf_plug.attention.discovery.candidates import Candidate
from gssf_plug.attention.discovery.layouts import Heads, resolve
from gssf_plug.attention.discovery.query_access import HeadView, OutputSite, shadow, unshadow
from gssf_plug.metric import GSSFMetric

__all__ = ["CHILD", "LayerMetric", "QueryMetric", "notice_hooks"]


def notice_hooks() -> None:
    """Let compiled code look at the hooks of modules again; the first time, forget what was compiled before.

    By default torch.compile takes the hooks of a module for fixed and runs "whichever version you first compiled" (its
    own words, `skip_nnmodule_hook_guards`), also for another model of the same class: a metric that came later would
    do nothing, and one that was merged would be forgotten on the way back.
    """
    if dynamo.skip_nnmodule_hook_guards:
        dynamo.skip_nnmodule_hook_guards = False
        torch.compiler.reset()


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


OUTPUT = "output"


class QueryMetric(LayerMetric):
    """The metrics of one attention layer, and the hooks that apply the active one.

    Args:
        candidate: the proven layout.
    """

    def __init__(self, candidate: Candidate) -> None:
        super().__init__(candidate.layout.name, candidate.heads, candidate.norm)
        site = candidate.query
        self.path = site.path
        self.weights = () if isinstance(site, OutputSite) else tuple(site.views)
        self.bias = candidate.bias
        views = {OUTPUT: site.view} if isinstance(site, OutputSite) else dict(site.views)
        if self.bias is not None:
            views[self.bias] = HeadView.whole(self.heads.query, self.heads.size)
        self.views = nn.ModuleDict(views)

    def view(self, name: str = OUTPUT) -> HeadView:
        """Where the heads lie in the site's output, or in its parameter `name`."""
        return cast(HeadView, cast(nn.ModuleDict, self._modules["views"])._modules[name])  # straight, see `metric`

    def attach(self, owner: nn.Module) -> None:
        """Become a child of the attention module `owner` and register the hooks."""
        owner.add_module(CHILD, self)
        if not self.weights:
            self.site(owner).register_forward_hook(self.change_output)
        if self.weights or self.bias:
            owner.register_forward_pre_hook(self.change_weights)
            owner.register_forward_hook(self.restore_weights, always_call=True)

    def detach(self, owner: nn.Module) -> None:
        """Undo `attach`, also where another adapter (PEFT) was put around the projection since."""
        self.restore_weights(owner, (), None)
        for module in {*self.site(owner).modules(), owner}:
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
        metric = self.acting()
        if metric is None:
            return None
        view = self.view()
        return view.put(output, self.fold(metric, view.take(output)))

    def change_weights(self, owner: nn.Module, arguments: object) -> None:
        """Forward pre-hook where the layer uses a parameter of the query without calling a projection."""
        self.restore_weights(owner, arguments, None)  # a forward that was interrupted did not
        metric = self.acting()
        if metric is not None:
            for holder, name in self.parameters_of_query(owner):
                weight, view = holder._parameters[name], self.view(name)
                assert weight is not None
                shadow(holder, name, view.put(weight, self.fold(metric, view.take(weight))).contiguous())

    def restore_weights(self, owner: nn.Module, arguments: object, output: object) -> None:
        """Forward hook, also called after an error."""
        for holder, name in self.parameters_of_query(owner):
            unshadow(holder, name)

    def parameters_of_query(self, owner: nn.Module) -> Iterator[tuple[nn.Module, str]]:
        """Modules and names of the parameters that are changed themselves."""
        for name in self.weights:
            yield self.site(owner), name
        if self.bias is not None:
            yield owner, self.bias
