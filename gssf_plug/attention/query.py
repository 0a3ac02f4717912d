"""QueryMetric: the metrics of one attention layer at its query, on the way out of the projection or of the query norm.

Its hooks are bound methods, so that copies of the model run their own. Where a layer hands its weight to a function
instead of calling a projection, the weight is shadowed for the time of the layer's forward; so is a bias of the query
that the layer adds by itself.
"""

from collections.abc import Iterator
from typing import cast

from torch import Tensor, nn

from gssf_plug.attention.candidates import Candidate
from gssf_plug.attention.heads import HeadView
from gssf_plug.attention.layer_metric import CHILD, LayerMetric
from gssf_plug.attention.layouts import resolve
from gssf_plug.attention.sites import OutputSite, shadow, unshadow

__all__ = ["QueryMetric"]

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
