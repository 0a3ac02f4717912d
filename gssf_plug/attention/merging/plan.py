"""Which layers of a patched model can be merged, with the folds made and checked, before anything is changed.

Fold a metric that acts in the score into the weights below it, where that is exact; else say why not.

Between projection and score may lie nothing (BERT, GPT-2, ViT: it folds), a rotation (Llama: only what commutes with it
folds, such as one factor for a head), a query norm. Nobody has to know which: the layer is run with the folded weights,
and the query that arrives at the attention function must be the one that the metric would have made there.
"""

import copy
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from gssf_plug.attention.merging.fold import Fold, NotFoldable, plan_fold
from gssf_plug.attention.merging.stand_in import StandIn
from gssf_plug.attention.placement import is_offloaded, is_sharded
from gssf_plug.attention.query_layer import LayerMetric, QueryMetric
from gssf_plug.attention.score_layer import ScoreMetric
from gssf_plug.attention.sites import LayerCall, arriving, record_calls
from gssf_plug.metric import GSSFMetric

__all__ = ["PatchedLayer", "plan_folds", "plan_score_fold"]


@dataclass
class PatchedLayer:
    """One patched attention module: where it is, its metrics, and the fold while it is merged."""

    patched: nn.Module
    metric_layer: LayerMetric
    fold: Fold | None = None

    @property
    def owner(self) -> nn.Module:
        """The attention module: the one that was patched, or what the model has put in its place since."""
        return self.metric_layer.home(self.patched)

    @property
    def query(self) -> LayerMetric:
        """The older name of `metric_layer`."""
        return self.metric_layer

    @property
    def stand_in(self) -> StandIn | None:
        """The folded weights, inside `folded()`."""
        return self.metric_layer.stand_in

    @stand_in.setter
    def stand_in(self, value: StandIn | None) -> None:
        self.metric_layer.stand_in = value


def plan_folds(
    model: nn.Module, layers: Mapping[str, PatchedLayer], *, once_trained: bool = False
) -> tuple[dict[str, Fold], dict[str, str]]:
    """The fold of each layer's active metric, and why others have none.

    Args:
        model: the model whose weights would change; each of them may belong to one module only.
        layers: the patched layers by path.
        once_trained: True asks whether a layer could be folded with any values that training may find; False asks for
            the present ones.
    """
    elsewhere = {name: reason for name, layer in layers.items() if (reason := _not_here(layer.owner))}
    users = Counter(parameter for module in model.modules() for parameter in module.parameters(recurse=False))
    here = {name: layer for name, layer in layers.items() if name not in elsewhere}
    scores = {name: layer.owner for name, layer in here.items() if isinstance(layer.metric_layer, ScoreMetric)}
    calls = record_calls(model, scores) if scores else {}
    folds: dict[str, Fold] = {}
    refused: dict[str, str] = {}
    for name, layer in layers.items():
        metric = layer.metric_layer.metric()
        if metric is None:
            continue
        if name in elsewhere:
            refused[name] = elsewhere[name]
            continue
        if once_trained:
            metric = _moved(metric)
        try:
            if isinstance(layer.metric_layer, ScoreMetric):
                folds[name] = plan_score_fold(layer.owner, layer.metric_layer, metric, users, calls.get(name))
            elif isinstance(layer.metric_layer, QueryMetric):
                folds[name] = plan_fold(layer.owner, layer.metric_layer, metric, users)
        except NotFoldable as reason:
            refused[name] = str(reason)
    return folds, refused


def _not_here(owner: nn.Module) -> str:
    """Why the weights of a layer cannot be changed in this process; empty where they can."""
    if any(is_sharded(parameter) for parameter in owner.parameters()):
        return "its weights are sharded over processes; save the adapter, and merge it in one process"
    if is_offloaded(owner):
        return "its weights are offloaded; save the adapter, and merge it into a model that is in memory"
    return ""


def _moved(metric: GSSFMetric) -> GSSFMetric:
    """A copy with other values, no two of them alike."""
    metric, generator = copy.deepcopy(metric), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in metric.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator).add(0.5))
    return metric


def plan_score_fold(
    owner: nn.Module,
    score: ScoreMetric,
    metric: GSSFMetric,
    users: Mapping[nn.Parameter, int],
    call: LayerCall | None,
) -> Fold:
    """The fold of `metric` into what makes the query of `owner`, checked at the score; the weights are as before.

    Args:
        owner: the attention module.
        score: the injected layer below it.
        metric: the metric whose matrix is folded.
        users: number of modules that hold each parameter.
        call: an example of how the model calls `owner`.

    Raises:
        NotFoldable: the metric cannot be folded; the error holds the reason.
    """
    below = score.below
    if below is None:
        raise NotFoldable(f"its score is changed, and {score.why_not_below or 'its query was not found'}")
    if call is None:
        raise NotFoldable("its score is changed, and no example shows what lies between its query and the score")
    if (below.heads.query_heads, below.heads.head_dim) != (score.heads.query_heads, score.heads.head_dim):
        raise NotFoldable("the heads in its score are not those of its query projection")
    fold = plan_fold(owner, below, metric, users)
    with torch.no_grad():
        wanted = [score.folded(metric, query) for query in arriving(owner, call)]
        with fold.tried():
            # what reaches the score with the new weights, beside what the metric would have made of it there
            got = arriving(owner, call)
    for one, other in zip(got, wanted, strict=True):
        slack = 64 * torch.finfo(other.dtype).eps * float(other.abs().max().clamp_min(1e-6))
        if not torch.allclose(one, other, rtol=0.0, atol=slack):
            raise NotFoldable(
                "rotary embedding (or another step) lies between its query and the score, and what was learned does "
                "not commute with it; patch with sites='projection' to merge"
            )
    return fold
