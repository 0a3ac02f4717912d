"""Adapter 1: the metric in the place of attention scores. q·k becomes qᵀAk in a pretrained model."""

import sys

from gssf_plug.attention.discovery import layouts
from gssf_plug.attention.discovery.layouts import Layout, Packing
from gssf_plug.attention.gssf_attention import GSSFAttention
from gssf_plug.attention.handle import AttentionPatch
from gssf_plug.attention.loading import load_attention
from gssf_plug.attention.merging.fold import MergeReport
from gssf_plug.attention.patch import patch_attention

# the public address of the layouts: error texts and users' imports name gssf_plug.attention.layouts
sys.modules[f"{__name__}.layouts"] = layouts

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
