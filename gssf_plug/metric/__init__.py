"""The structured metric s(x, y) = x̂ᵀ (W ⊙ U) ŷ. Knows tensors; knows no model and no loss."""

from gssf_plug.metric.contributions import block_contributions
from gssf_plug.metric.grouping import group_channels
from gssf_plug.metric.metric import GSSFMetric
from gssf_plug.metric.search import topk

__all__ = ["GSSFMetric", "block_contributions", "group_channels", "topk"]
