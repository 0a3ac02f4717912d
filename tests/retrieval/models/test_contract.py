"""The four retrieval models hold what tests/contracts/retrieval_model.py asks of every one."""

import math

import torch
from contracts.retrieval_model import DIM, RetrievalModelContract, small, words_of
from torch import nn
from torch.nn.functional import leaky_relu, normalize
from transformers import CLIPConfig, CLIPModel

from gssf_plug.features import BNNeck
from gssf_plug.retrieval import (
    DualEncoder,
    ImageToText,
    LocalAlignment,
    LogSumExp,
    OneTower,
    TextToImage,
    Tower,
    TwoTower,
    WordGRU,
    average,
)

IDS = {"image_ids": torch.tensor([1, 2, 3]), "text_ids": torch.tensor([3, 1, 1, 2, 9])}


def similarity(query, item, matrix):
    return float(normalize(query, dim=0) @ matrix @ normalize(item, dim=0))


class TestTwoTower(RetrievalModelContract):
    def make(self, metric):
        return TwoTower(small(nn.Linear(6, DIM)), Tower(small(WordGRU(12, DIM, embedding=4))), metric)

    def batch(self):
        return {"images": torch.randn(3, 6, generator=torch.Generator().manual_seed(0)), "texts": words_of(), **IDS}

    def pair(self, model, query, item, matrix):
        return similarity(query, item, matrix)


class TestOneTower(RetrievalModelContract):
    def make(self, metric):
        return OneTower(Tower(small(nn.Sequential(nn.Flatten(), nn.Linear(48, DIM)))), metric, neck=BNNeck(DIM))

    def batch(self):
        inputs = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        return {"inputs": inputs, "labels": torch.tensor([0, 0, 1, 1, 2])}

    def pair(self, model, query, item, matrix):
        return similarity(query, item, matrix)


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


class TestLocalAlignment(RetrievalModelContract):
    def make(self, metric):
        alignments = [TextToImage(5.0, LogSumExp(3.0)), ImageToText(4.0, average)]
        image = Tower(None, token_projection=small(nn.Linear(6, DIM)))
        text = small(WordGRU(12, DIM, embedding=4))
        return LocalAlignment(image, text, metric=metric, attention_metric=metric, alignments=alignments)

    def batch(self):
        regions = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0))
        mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])
        return {"images": {"features": regions, "attention_mask": mask}, "texts": words_of(), **IDS}

    def pair(self, model, query, item, matrix):
        """SCAN as it is published: the attended vectors are formed."""
        regions, words = normalize(query, dim=-1), normalize(item, dim=-1)
        logits = leaky_relu(regions @ matrix @ words.T, 0.1)
        by_word = logits / (logits.norm(dim=1, keepdim=True) + 1e-8)
        attended = torch.softmax(5.0 * by_word, dim=0).T @ regions
        first = torch.stack([normalize(a, dim=0) @ matrix @ w for a, w in zip(attended, words, strict=True)])
        by_region = logits / (logits.norm(dim=0, keepdim=True) + 1e-8)
        heard = torch.softmax(4.0 * by_region, dim=1) @ words
        second = torch.stack([r @ matrix @ normalize(h, dim=0) for r, h in zip(regions, heard, strict=True)])
        return float(((3.0 * first).logsumexp(0) / 3.0 + second.mean()) / 2)
