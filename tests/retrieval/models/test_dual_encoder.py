"""DualEncoder holds what every retrieval model must."""

import math

import torch
from contracts.retrieval_model import DIM, IDS, RetrievalModelContract, similarity, small, words_of
from transformers import CLIPConfig, CLIPModel

from gssf_plug.retrieval import (
    DualEncoder,
)


class TestDualEncoder(RetrievalModelContract):
    def make(self, metric):
        sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        text = {**sizes, "vocab_size": 12, "max_position_embeddings": 8}
        vision = {**sizes, "image_size": 8, "patch_size": 4}
        return DualEncoder(
            small(CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=DIM))), metric
        )

    def batch(self):
        pixels = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        return {"images": {"pixel_values": pixels}, "texts": words_of(), **IDS}

    def pair(self, model, query, item, matrix):
        return math.exp(model.encoder.logit_scale) * similarity(query, item, matrix)
