"""Doors of `gssf_plug.attention`."""

from typing import Any

import torch
from transformers import BertConfig, BertModel
from wrong_calls.door import Door, tokens

from gssf_plug.attention import GSSFAttention, patch_attention

__all__ = ["ATTENTION"]


def _attention() -> dict[str, Any]:
    torch.manual_seed(0)
    sizes = {"vocab_size": 16, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = BertModel(BertConfig(intermediate_size=8, max_position_embeddings=16, **sizes)).eval()
    return {
        "model": model, "terms": ("diagonal",), "block_size": 4, "layers": None, "per_head": True,
        "sites": "projection", "query_norm": "after", "dtype": None, "adapter_name": "default", "example_inputs": None,
    }  # fmt: skip


def _attending() -> dict[str, Any]:
    forbidden = torch.zeros(6, 3).bool()
    return {
        "query": tokens(), "key": tokens(), "value": tokens(), "key_padding_mask": forbidden,
        "attn_mask": torch.zeros(3, 3), "is_causal": False, "need_weights": True,
    }  # fmt: skip


ATTENTION = [
    Door(patch_attention, _attention),
    Door(
        GSSFAttention,
        lambda: {
            "embed_dim": 8, "num_heads": 2, "terms": ("diagonal",), "block_size": 4, "kdim": 8, "vdim": 8,
            "normalize": False, "bias": True, "dropout": 0.0,
        },
    ),
    Door(GSSFAttention(8, 2, block_size=4).forward, _attending, nan_passes=True),
]  # fmt: skip
