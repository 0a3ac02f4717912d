"""LocalAlignment holds what every retrieval model must, beside SCAN as it is published."""

import torch
from contracts.retrieval_model import DIM, IDS, RetrievalModelContract, small, words_of
from torch import nn
from torch.nn.functional import leaky_relu, normalize

from gssf_plug.retrieval import (
    ImageToText,
    LocalAlignment,
    LogSumExp,
    TextToImage,
    Tower,
    WordGRU,
    average,
)


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
