"""Fold a metric into the weights that make the query, and report what the weights' dtype kept of it.

    projection   q M = (x Wᵀ + b) M, so W ← Mᵀ W and b ← b M, head by head
    query norm   q = n(x) ⊙ g, so g ← g ⊙ m where M = diag(m); anything but a diagonal does not fold into a norm

The product is made in float32 (float64 for float64 weights) and rounded once. Every fold is checked on the module
itself: its output with the new weights must be its old output times M; where it is not, the layer does not fold and
says why. Nothing is divided: what was replaced is kept, and `restore` puts it back bit for bit.

What merging did, layer by layer, and what the weights' dtype kept of it.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from transformers.pytorch_utils import Conv1D

from gssf_plug.attention.discovery.query_access import HeadView
from gssf_plug.attention.query_layer import QueryMetric
from gssf_plug.metric import GSSFMetric

__all__ = ["EATEN", "Fold", "MergeReport", "MergedLayer", "NotFoldable", "plan_fold"]

EATEN = 0.9  # below this kept share a merge warns


@dataclass(frozen=True)
class MergedLayer:
    """What one fold did.

    Args:
        name: path of the attention module.
        into: name of the module whose weights took the metric.
        kept: share of the learned change that is left after rounding to the weight's data type, 1 − ‖error‖ / ‖change‖.
        largest_change: largest change of a single weight, in absolute value.
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


class NotFoldable(Exception):  # noqa: N818
    """This layer's metric cannot be folded; the message is the reason. Never leaves this room."""


@dataclass
class Fold:
    """The new values of some parameters, and the old ones once they are replaced."""

    into: str
    new: dict[nn.Parameter, Tensor]
    old: dict[nn.Parameter, Tensor] = field(default_factory=dict)
    written: bool = False

    def write(self) -> None:
        """Put the new values in, keep the old ones."""
        with torch.no_grad():
            for parameter, value in self.new.items():
                self.old[parameter] = parameter.detach().clone()
                parameter.copy_(value)
        self.written = True

    def restore(self) -> None:
        """Put the old values back, bit for bit."""
        with torch.no_grad():
            for parameter, value in self.old.items():
                parameter.copy_(value)
        self.written = False

    @contextmanager
    def tried(self) -> Iterator[None]:
        """The new values inside the context, nothing kept afterwards."""
        self.write()
        try:
            yield
        finally:
            self.restore()
            self.old = {}

    def changed(self) -> nn.Parameter | None:
        """The first parameter that no longer holds what `write` or `restore` left in it."""
        for parameter, old in self.old.items():
            # the parameter may have been moved or cast since; NaN would not equal itself
            left = self.new[parameter].to(old.dtype) if self.written else old
            if not torch.equal(parameter.detach().nan_to_num(), left.to(parameter).nan_to_num()):
                return parameter
        return None

    def measure(self, name: str) -> MergedLayer:
        """What rounding left of the change; before or after `write`."""
        true = stored = largest = 0.0
        for parameter, value in self.new.items():
            before = self.old.get(parameter, parameter).detach().to(value.dtype)
            change = value - before
            true += float(change.square().sum())
            # what rounding takes away, in the wider dtype
            stored += float((value.to(parameter.dtype).to(value.dtype) - value).square().sum())
            largest = max(largest, float(change.abs().max()))
        kept = 1.0 - (stored / true) ** 0.5 if true else 1.0
        return MergedLayer(name, self.into, kept, largest)


def plan_fold(owner: nn.Module, query: QueryMetric, metric: GSSFMetric, users: Mapping[nn.Parameter, int]) -> Fold:
    """The fold of `metric` into the layer `owner`, computed and checked; the weights are as before.

    Args:
        owner: the attention module.
        query: the injected layer below it, which knows where the heads lie.
        metric: the metric whose matrix is folded.
        users: number of modules that hold each parameter.

    Raises:
        NotFoldable: the metric cannot be folded; the error holds the reason.
    """
    if any(not bool(parameter.isfinite().all()) for parameter in metric.parameters()):
        raise NotFoldable("the metric holds NaN or infinite values; nothing was changed")
    site = query.site(owner)
    sample: tuple[object, ...] | None = None
    with torch.no_grad():
        if query.norm is not None:
            fold, sample = _into_norm(site, query, metric), (_norm_input(site, query),)
        elif query.weights:
            fold = _into_weights(site, query, metric)
        else:
            fold, sample = _into_projection(site, query, metric), _projection_input(site)
            if query.bias is not None:
                bias = _parameter(owner, query.bias)
                fold.new[bias] = _folded(query, metric, bias, query.view(query.bias))
        shared = [parameter for parameter in fold.new if users.get(parameter, 1) > 1]
        if shared:
            raise NotFoldable("its weight is shared (tied) with another module, which the fold would change too")
        if sample is not None:
            _check(fold, site, query, metric, sample)
    return fold


def _into_projection(site: nn.Module, query: QueryMetric, metric: GSSFMetric) -> Fold:
    linear = _linear_inside(site)
    view, weight, bias = query.view(), _parameter(linear, "weight"), linear._parameters.get("bias")
    index = view.index.view(view.heads, view.size).cpu()
    # where the outputs lie: Conv1D keeps (in, out), experts (expert, out, in), a linear layer (out, in)
    axis = -1 if isinstance(linear, Conv1D) else 1 if _holds_experts(linear) else 0
    if weight.shape[axis] != view.width:
        raise NotFoldable(
            f"'{type(site).__name__}' makes {view.width} channels of the {weight.shape[axis]} of its linear map: more "
            "than that map lies inside of it, and the metric sits behind"
        )
    new = {weight: _folded(query, metric, weight, HeadView(index, view.width, axis=axis).to(weight.device))}
    if bias is not None:
        new[bias] = _folded(query, metric, bias, HeadView(index, view.width).to(bias.device))
    return Fold(query.path, new)


def _into_weights(site: nn.Module, query: QueryMetric, metric: GSSFMetric) -> Fold:
    new = {}
    for name in query.weights:
        parameter = _parameter(site, name)
        new[parameter] = _folded(query, metric, parameter, query.view(name))
    return Fold(f"{query.path}.{query.weights[0]}".lstrip("."), new)


def _into_norm(norm: nn.Module, query: QueryMetric, metric: GSSFMetric) -> Fold:
    factors = _shared_diagonal(query, metric, norm)
    weight, bias = _parameter(norm, "weight"), norm._parameters.get("bias")
    exact = torch.promote_types(weight.dtype, torch.float32)
    factors, before = factors.to(exact), weight.to(exact)
    # whether the gain is w or 1 + w stands nowhere: only a run of the norm tells
    probe = _norm_input(norm, query)
    plain = _gain_is_weight(norm, probe)
    new = {weight: before * factors if plain else (1 + before) * factors - 1}  # Gemma's norms multiply by 1 + weight
    if bias is not None:
        new[bias] = bias.to(exact) * factors
    return Fold(query.path, new)


def _shared_diagonal(query: QueryMetric, metric: GSSFMetric, norm: nn.Module) -> Tensor:
    """The metric as factors of the norm's weight, or the reason why it is none."""
    blocks = metric.blocks()
    factors = blocks.diagonal(dim1=-2, dim2=-1)
    if not torch.equal(blocks, torch.diag_embed(factors)):
        raise NotFoldable(
            f"it sits after the query norm '{query.path}', into which only a diagonal folds; patch with "
            "terms=('diagonal',) and per_head=False, or before the norm with query_norm='before'"
        )
    # one factor for each channel, of all heads or of one; the weight of a norm may be as wide as either
    factors = factors.reshape(-1)
    weight = getattr(norm, "weight", None)
    if not isinstance(weight, nn.Parameter) or weight.ndim != 1:
        raise NotFoldable(f"the query norm '{query.path}' has no weight that could take it; use query_norm='before'")
    if weight.numel() == factors.numel():
        return factors
    if factors.numel() == query.heads.head_dim:
        return factors.repeat(weight.numel() // factors.numel())
    rows = factors.view(-1, query.heads.head_dim)
    if not torch.equal(rows, rows[:1].expand_as(rows)):
        raise NotFoldable(
            f"all heads share the weight of the query norm '{query.path}', and each head has a diagonal of its own; "
            "patch with per_head=False, or before the norm with query_norm='before'"
        )
    return rows[0]


def _gain_is_weight(norm: nn.Module, x: Tensor) -> bool:
    """True where the norm multiplies by its weight, False where by 1 + weight; seen by setting the weight to zero."""
    weight, bias = _parameter(norm, "weight"), norm._parameters.get("bias")
    before = weight.detach().clone()
    try:
        weight.zero_()
        silent = norm(x)
        return bool((silent == (0.0 if bias is None else bias)).all())
    finally:
        weight.copy_(before)


def _folded(query: QueryMetric, metric: GSSFMetric, parameter: Tensor, view: HeadView) -> Tensor:
    exact = parameter.to(torch.promote_types(parameter.dtype, torch.float32))
    rows = view.take(exact)
    return view.put(exact, query.fold(metric, rows)).contiguous()


def _linear_inside(site: nn.Module) -> nn.Module:
    """The linear map whose output the site gives: itself, or the one that a wrapper holds."""
    kinds = (nn.Linear, Conv1D, nn.Conv1d, nn.Conv2d)
    found = [module for module in site.modules() if isinstance(module, kinds) or _holds_experts(module)]
    if len(found) != 1:
        raise NotFoldable(
            f"'{type(site).__name__}' is no single linear map; merge or unload the adapter (PEFT) or the quantisation "
            "beneath it first"
        )
    if is_parametrized(found[0]) or "weight" not in found[0]._parameters:
        raise NotFoldable(
            "its weight is computed from other parameters (weight_norm, spectral_norm); make it plain first with "
            "torch.nn.utils.parametrize.remove_parametrizations, or remove_weight_norm for the old kind"
        )
    weight = found[0].weight
    if not isinstance(weight, nn.Parameter) or not weight.is_floating_point() or type(weight.data) is not Tensor:
        raise NotFoldable(f"its weight is quantised or sharded ({weight.dtype}); dequantise or gather it first")
    return found[0]


def _holds_experts(module: nn.Module) -> bool:
    """One linear map per expert in a single weight (experts, out, in), called with the rows that each gets (JetMoE)."""
    weight = module._parameters.get("weight")
    return hasattr(module, "num_experts") and weight is not None and weight.ndim == 3


def _parameter(module: nn.Module, name: str) -> nn.Parameter:
    parameter = module._parameters[name]
    assert parameter is not None
    return parameter


def _projection_input(site: nn.Module) -> tuple[object, ...]:
    linear = _linear_inside(site)
    weight = _parameter(linear, "weight")
    if isinstance(linear, (nn.Conv1d, nn.Conv2d)):
        return (_noise((1, linear.in_channels, *(2 * size + 1 for size in linear.kernel_size)), weight),)
    if _holds_experts(linear):
        return _noise((weight.shape[0], weight.shape[2]), weight), [1] * weight.shape[0]
    return (_noise((1, 3, weight.shape[0] if isinstance(linear, Conv1D) else weight.shape[1]), weight),)


def _norm_input(norm: nn.Module, query: QueryMetric) -> Tensor:
    heads, size = query.heads.query_heads, query.heads.head_dim
    shapes = {None: (3, heads * size), -2: (1, 3, heads, size), -3: (1, heads, 3, size)}
    weight = norm._parameters.get("weight")
    return _noise(shapes[query.view().head_axis], torch.zeros(()) if weight is None else weight)


def _noise(shape: tuple[int, ...], like: Tensor) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(like)


def _check(fold: Fold, site: nn.Module, query: QueryMetric, metric: GSSFMetric, sample: tuple[object, ...]) -> None:
    """Run the module with the new weights: its output must be the old one, folded."""
    view = query.view()
    before = site.forward(*sample)  # without the hooks
    expected = view.put(before, query.fold(metric, view.take(before)))
    with fold.tried():
        got = site.forward(*sample)
    slack = 64 * torch.finfo(got.dtype).eps * float(expected.abs().max().clamp_min(1e-6))
    if not torch.allclose(got, expected, rtol=0.0, atol=slack):
        raise NotFoldable(f"the output of '{query.path}' ({type(site).__name__}) is not linear in its weight")
