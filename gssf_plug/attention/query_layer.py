"""The injected layer: what hangs below a patched attention layer, holds its metrics, and applies the one that acts.

A `LayerMetric` is a child of the attention layer by the name `gssf`, so the layer's own parameters keep their names in
`state_dict`. It finds whatever it needs in the layer, so a deep copy, a pickle or an EMA copy of the model carries its
own metrics. While it is disabled, or where the active adapter does not cover this layer, it changes nothing at all.

`QueryMetric` acts at the query, on the way out of its projection or of the query norm; `ScoreMetric` (in `score_layer`)
acts in the score itself. The hooks of a `QueryMetric` are bound methods, so that copies of the model run their own.
Where a layer hands its weight to a function instead of calling a projection, the weight is shadowed for the time of
the layer's forward; so is a bias of the query that the layer adds by itself.

`notice_hooks` lets code of torch.compile notice that a metric came or went.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, Self, cast

import torch
import torch._dynamo.config as dynamo
from jaxtyping import Float
from torch import Tensor, nn

from gssf_plug.attention.discovery.candidates import Candidate
from gssf_plug.attention.discovery.layouts import Heads, resolve
from gssf_plug.attention.discovery.query_access import CHILD, HeadView, OutputSite, shadow, unshadow
from gssf_plug.attention.placement import is_sharded
from gssf_plug.errors import ArgumentError
from gssf_plug.metric import GSSFMetric

__all__ = ["CHILD", "LayerMetric", "Patched", "QueryMetric", "lost_layers", "notice_hooks"]


def notice_hooks() -> None:
    """Let compiled code look at the hooks of modules again; the first time, forget what was compiled before.

    By default torch.compile takes the hooks of a module for fixed and runs "whichever version you first compiled" (its
    own words, `skip_nnmodule_hook_guards`), also for another model of the same class: a metric that came later would
    do nothing, and one that was merged would be forgotten on the way back.
    """
    if dynamo.skip_nnmodule_hook_guards:
        # one switch for the process: it costs 0.02 ms a call, 3 % of a BERT of 4 layers, 128 wide, on 16 tokens
        dynamo.skip_nnmodule_hook_guards = False
        torch.compiler.reset()


class LayerMetric(nn.Module):
    """The metrics of one attention layer and which of them acts. Subclasses say where.

    Args:
        layout: name of the place where the metric acts, which summaries show and files keep.
        heads: numbers and widths of the heads.
        norm: path of the query norm behind which the metric acts; None where it acts at no norm.

    Shape:
        rows (…, heads·size) -> (…, heads·size); a metric of `size` channels is shared by all heads.
    """

    def __init__(self, layout: str, heads: Heads, norm: str | None) -> None:
        super().__init__()
        self.layout, self.heads, self.norm = layout, heads, norm
        self.adapters = nn.ModuleDict()
        self.active: str | None = None
        self.enabled = True
        self.stand_in: Any = (
            None  # the folded weights of `AttentionPatch.folded`, here so that copies and handles see it
        )
        self.resting: dict[str, list[bool]] = {}  # `requires_grad` of each adapter that does not act, as it was

    def metric(self, adapter_name: str | None = None) -> GSSFMetric | None:
        """The metric of an adapter (the active one by default); None where it does not cover this layer."""
        name = self.active if adapter_name is None else adapter_name
        # past `nn.Module.__getattr__`, at every layer and token: 0.2 µs instead of 2.0, where folding a row takes 41
        adapters = cast(nn.ModuleDict, self._modules["adapters"])._modules
        return cast("GSSFMetric | None", adapters.get(name)) if name is not None else None

    def acting(self) -> GSSFMetric | None:
        """The metric that acts now; None while disabled."""
        return self.metric() if self.enabled else None

    def activate(self, adapter_name: str) -> None:
        """Let this adapter act; the others ask for no gradient meanwhile: DDP waits for each parameter that does."""
        for name, metric in self.adapters.items():
            # flags come back one by one: a user may have frozen a part of an adapter
            parameters = list(metric.parameters())
            if name == adapter_name:
                for parameter, flag in zip(parameters, self.resting.pop(name, []), strict=False):
                    parameter.requires_grad_(flag)
            elif name not in self.resting:
                self.resting[name] = [parameter.requires_grad for parameter in parameters]
                metric.requires_grad_(False)
        self.active = adapter_name

    def drop(self, adapter_name: str) -> None:
        """Forget an adapter, if it is there."""
        if adapter_name in self.adapters:
            del self.adapters[adapter_name]
            self.resting.pop(adapter_name, None)

    def fold(self, metric: GSSFMetric, rows: Float[Tensor, "... channels"]) -> Float[Tensor, "... channels"]:
        """Each head's query times its matrix."""
        if metric.dim == rows.shape[-1]:
            return metric.fold(rows)
        return metric.fold(rows.unflatten(-1, (self.heads.query_heads, self.heads.head_dim))).flatten(-2)

    def attach(self, owner: nn.Module) -> None:
        """Become a child of the attention module `owner`, and act."""
        owner.add_module(CHILD, self)
        self.hook(owner)

    def detach(self, owner: nn.Module) -> None:
        """Undo `attach`."""
        self.unhook(owner)
        delattr(owner, CHILD)

    def hook(self, owner: nn.Module) -> None:
        """Take the place in the forward of `owner` where the query passes."""
        raise NotImplementedError

    def unhook(self, owner: nn.Module) -> None:
        """Undo `hook`: its forward costs what it did before."""
        raise NotImplementedError

    def lost(self, owner: nn.Module) -> str:
        """Why the query of `owner` no longer passes through here although this is its child; "" where it does."""
        raise NotImplementedError

    def home(self, owner: nn.Module) -> nn.Module:
        """The attention module that this belongs to now: `owner`, or what the model has put in its place since."""
        return owner

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move, and never round: `model.to(torch.bfloat16)` would turn a learned 1 + 1e-3 into 1."""

        def precise(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            # `fn` may round; what it rounded is moved again from the values that it was given
            wider = torch.promote_types(moved.dtype, tensor.dtype)
            return moved if moved.dtype == wider else tensor.to(moved.device, wider)

        return super()._apply(precise, recurse)

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"{self.layout}, {self.heads.query_heads} heads of {self.heads.head_dim}, active={self.active!r}"


OUTPUT = "output"


class QueryMetric(LayerMetric):
    """The metrics of one attention layer, and the hooks that apply the active one.

    Args:
        candidate: the layout that the probe proved, with its numbers.
        place: the parent of the attention module, and its name there, where the model itself puts another module in its
            place while it runs; None (default) where it does not.
    """

    place: tuple[nn.Module, str] | None = None  # also of what was pickled before there was one

    def __init__(self, candidate: Candidate, place: tuple[nn.Module, str] | None = None) -> None:
        super().__init__(candidate.layout.name, candidate.heads, candidate.norm)
        self.place = place
        site = candidate.query
        self.path = site.path
        self.weights = () if isinstance(site, OutputSite) else tuple(site.views)
        self.bias = candidate.bias
        views = {OUTPUT: site.view} if isinstance(site, OutputSite) else dict(site.views)
        if self.bias is not None:
            views[self.bias] = HeadView.whole(self.heads.query_heads, self.heads.head_dim)
        self.views = nn.ModuleDict(views)

    def view(self, name: str = OUTPUT) -> HeadView:
        """Where the heads lie in the site's output, or in its parameter `name`."""
        return cast(HeadView, cast(nn.ModuleDict, self._modules["views"])._modules[name])  # straight, see `metric`

    def hook(self, owner: nn.Module) -> None:
        """Register the hooks at the module that makes the query, and at `owner`."""
        if not self.weights:
            self._hook_site(owner, self.site(owner))
            owner.register_forward_pre_hook(self.follow)
        if self.weights or self.bias:
            owner.register_forward_pre_hook(self.change_weights)
            owner.register_forward_hook(self.restore_weights, always_call=True)
        if self.place is not None:
            self.place[0].register_forward_pre_hook(self.move)
            self.__dict__["owner"] = owner  # no child, or the model would have a circle

    def unhook(self, owner: nn.Module) -> None:
        """Undo `hook`, also where another adapter (PEFT) was put around the projection since."""
        self.restore_weights(owner, (), None)
        for module in (*owner.modules(), *(self.place or ())[:1]):
            for hooks in (module._forward_hooks, module._forward_pre_hooks):
                for key in self._own(hooks):
                    hooks.pop(key)
                    module._forward_hooks_always_called.pop(key, None)

    def lost(self, owner: nn.Module) -> str:
        """Looks after the hook first: a projection that was replaced has it back after this, where that is possible."""
        if not self._own(owner._forward_pre_hooks):
            return "its hooks were removed"
        try:
            if not self.weights:
                self.follow(owner, ())
        except ArgumentError as error:
            return str(error)
        return ""

    def home(self, owner: nn.Module) -> nn.Module:
        """Moves there first, where the model has replaced its attention since."""
        if self.place is None:
            return owner
        self.move(self.place[0], ())
        return cast(nn.Module, self.__dict__["owner"])

    def move(self, parent: nn.Module, arguments: object) -> None:
        """Forward pre-hook of the parent: where another attention module stands in the place, become a child of that.

        BigBird puts one there at the first short input, and hands the same projections on to it.
        """
        assert self.place is not None
        old, new = self.__dict__["owner"], parent._modules.get(self.place[1])
        if new is None or new is old or resolve(new, self.path) is not self.__dict__["seen"]:
            return
        if old._modules.get(CHILD) is self:  # neither merged nor removed
            self.detach(old)
            new.add_module(CHILD, self)
            if self.stand_in is None:
                self.hook(new)
        self.__dict__["owner"] = new

    def follow(self, owner: nn.Module, arguments: object) -> None:
        """Forward pre-hook of `owner`: where a tool put another module in the projection's place, take that one.

        Quantisers (quanto, neural-compressor) and PEFT's `unload` make a new module and know nothing of hooks.
        """
        # straight, since it runs at every layer and token; `seen` is no child, so `modules()` does not list it twice
        site = owner._modules.get(self.path) if "." not in self.path else self.site(owner)
        if site is not self.__dict__["seen"]:
            self._hook_site(owner, site)

    def _hook_site(self, owner: nn.Module, site: nn.Module | None) -> None:
        """Hang the hook at `site`, unless it hangs there or, where a wrapper (PEFT) came around it, inside."""
        width = getattr(site, "out_features", self.view().width)
        if site is None or (width != self.view().width and self.view().axis == -1):
            raise ArgumentError(
                "patch",
                f"find the module that makes the query of a {type(owner).__name__} at '{self.path}'",
                "nothing there" if site is None else f"a {type(site).__name__} of {width} channels",
                "A tool has put other modules there (fused or split projections): merge the patch, then use the tool.",
            )
        if not any(self._own(module._forward_hooks) for module in site.modules()):
            site.register_forward_hook(self.change_output)
        self.__dict__["seen"] = site

    def _own(self, hooks: Mapping[int, object]) -> list[int]:
        return [key for key, hook in hooks.items() if getattr(hook, "__self__", None) is self]

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
        if type(output) is not Tensor and is_sharded(output):
            raise ArgumentError(
                "model",
                "not be split over devices (tensor parallel) while it is patched",
                f"the query of a {type(module).__name__} as a DTensor, beside a metric that each process holds whole",
                "Save the adapter, merge it into the whole model, and parallelise the merged one.",
            )
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


class Patched(Protocol):
    """What is asked of a patched layer: the module that was patched, its metrics, and whether they are merged."""

    patched: nn.Module
    metric_layer: LayerMetric
    fold: Any


def lost_layers(model: nn.Module, layers: Mapping[str, Patched]) -> dict[str, str]:
    """Layers in which the metric hangs and cannot act, since a tool changed the model, and why; looked up now."""
    there = {id(module) for module in model.modules()}
    lost: dict[str, str] = {}
    for name, layer in layers.items():
        owner = layer.metric_layer.home(layer.patched)
        if (
            layer.fold is not None
            or layer.metric_layer.stand_in is not None
            or owner._modules.get(CHILD) is not layer.metric_layer
        ):
            continue
        gone = "" if id(owner) in there else "another module stands in its place"
        reason = gone or layer.metric_layer.lost(owner)
        if reason:
            lost[name] = reason
    return lost
