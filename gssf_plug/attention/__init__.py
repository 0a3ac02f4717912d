"""Adapter 1: the metric in the place of attention scores. q·k becomes qᵀAk in a pretrained model."""

from gssf_plug.attention import layouts as layouts
from gssf_plug.attention.handle import AttentionPatch as AttentionPatch
from gssf_plug.attention.layer import GSSFAttention as GSSFAttention
from gssf_plug.attention.layouts import Layout as Layout
from gssf_plug.attention.load import load_attention as load_attention
from gssf_plug.attention.merge_report import MergeReport as MergeReport
from gssf_plug.attention.packing import Packing as Packing
from gssf_plug.attention.patch import patch_attention as patch_attention

__all__ = [
    "AttentionPatch",
    "GSSFAttention",
    "Layout",
    "MergeReport",
    "Packing",
    "layouts",
    "load_attention",
    "patch_attention",
]
