"""Doors of `gssf_plug.attention`."""

from typing import Any

import torch
from transformers import BertConfig, BertModel
from wrong_calls.door import Door

from gssf_plug.attention import patch_attention

__all__ = ["ATTENTION"]


def _attention() -> dict[str, Any]:
    torch.manual_seed(0)
    sizes = {"vocab_size": 16, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = BertModel(BertConfig(intermediate_size=8, max_position_embeddings=16, **sizes)).eval()
    return {
        "model": model, "terms": ("diagonal",), "block_size": 4, "layers": None, "per_head": True,
        "sites": "projection", "query_norm": "after", "dtype": None, "adapter_name": "default", "example_inputs": None,
    }  # fmt: skip


ATTENTION = [Door(patch_attention, _attention)]
