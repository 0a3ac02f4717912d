"""Models of one and two towers hold what every retrieval model must."""

import torch
from contracts.retrieval_model import DIM, IDS, RetrievalModelContract, similarity, small, words_of
from torch import nn

from gssf_plug.features import BNNeck
from gssf_plug.retrieval import (
    OneTower,
    Tower,
    TwoTower,
    WordGRU,
)


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
