"""The structured metric s(x, y) = x̂ᵀ (W ⊙ U) ŷ. Knows tensors; knows no model and no loss."""

from gssf_plug.metric.contributions import block_contributions
from gssf_plug.metric.gallery import PreparedGallery, prepare_gallery
from gssf_plug.metric.grouping import group_channels
from gssf_plug.metric.metric import GSSFMetric
from gssf_plug.metric.options import Term
from gssf_plug.metric.search import Neighbours, topk
from gssf_plug.metric.stores import StoreReport, check_store
from gssf_plug.metric.unit_rows import normalize_rows

__all__ = [
    "GSSFMetric",
    "Neighbours",
    "PreparedGallery",
    "StoreReport",
    "Term",
    "block_contributions",
    "check_store",
    "group_channels",
    "normalize_rows",
    "prepare_gallery",
    "topk",
]
