"""Fold a metric that acts in the score into the weights below it, where that is exact; else say why not.

Between projection and score may lie nothing (BERT, GPT-2, ViT: it folds), a rotation (Llama: only what commutes with it
folds, such as one factor for a head), a query norm. Nobody has to know which: the layer is run with the folded weights,
and the query that arrives at the attention function must be the one that the metric would have made there.
"""

from collections.abc import Mapping

import torch
from torch import nn

from gssf_plug.attention.merge import Fold, NotFoldable, plan_fold
from gssf_plug.attention.score_sites import LayerCall, arriving
from gssf_plug.attention.scores import ScoreMetric
from gssf_plug.metric import GSSFMetric

__all__ = ["plan_score_fold"]


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
        score: its child.
        metric: whose matrix is folded.
        users: how many modules hold each parameter.
        call: an example of how the model calls `owner`.

    Raises:
        NotFoldable: with the reason.
    """
    below = score.below
    if below is None:
        raise NotFoldable(f"its score is changed, and {score.why_not_below or 'its query was not found'}")
    if call is None:
        raise NotFoldable("its score is changed, and no example shows what lies between its query and the score")
    if (below.heads.query, below.heads.size) != (score.heads.query, score.heads.size):
        raise NotFoldable("the heads in its score are not those of its query projection")
    fold = plan_fold(owner, below, metric, users)
    with torch.no_grad():
        wanted = [score.folded(metric, query) for query in arriving(owner, call)]
        with fold.tried():
            got = arriving(owner, call)
    for one, other in zip(got, wanted, strict=True):
        slack = 64 * torch.finfo(other.dtype).eps * float(other.abs().max().clamp_min(1e-6))
        if not torch.allclose(one, other, rtol=0.0, atol=slack):
            raise NotFoldable(
                "rotary embedding (or another step) lies between its query and the score, and what was learned does "
                "not commute with it; patch with sites='projection' to merge"
            )
    return fold
