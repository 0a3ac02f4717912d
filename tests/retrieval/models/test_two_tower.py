"""Towers over any encoder; two towers, one tower, what they refuse."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cosine_similarity
from transformers import BertConfig, BertModel, ViTConfig, ViTModel

from gssf_plug import GSSFMetric
from gssf_plug.errors import ArgumentError
from gssf_plug.features import cls_pool, max_pool, mean_pool
from gssf_plug.retrieval import OneTower, Tower, TwoTower


def perturbed(metric):
    for parameter in metric.parameters():
        nn.init.normal_(parameter)
    return metric


def bert():
    config = BertConfig(vocab_size=30, hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    return BertModel(config).eval()


def vit():
    config = ViTConfig(
        hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8, patch_size=4
    )
    return ViTModel(config).eval()


def test_towers_take_every_kind_of_encoder():
    images = torch.randn(4, 3, 8, 8)
    tokens = {"input_ids": torch.randint(0, 30, (4, 5)), "attention_mask": torch.tensor([[1, 1, 1, 0, 0]] * 4)}
    conv = nn.Conv2d(3, 12, 3)
    torch.testing.assert_close(Tower(conv)(images), conv(images).mean((2, 3)))
    torch.testing.assert_close(Tower(conv, pooling=max_pool)(images), conv(images).amax((2, 3)))
    torch.testing.assert_close(Tower(None)(images[:, 0, 0]), images[:, 0, 0])
    encoder = bert()
    states = encoder(**tokens).last_hidden_state
    torch.testing.assert_close(Tower(encoder)(tokens), states[:, :3].mean(1))
    torch.testing.assert_close(Tower(encoder, pooling=cls_pool)(tokens), states[:, 0])
    torch.testing.assert_close(Tower(encoder, output="pooler_output")(tokens), encoder(**tokens).pooler_output)
    encoder, project = vit(), nn.Linear(12, 6)
    torch.testing.assert_close(
        Tower(encoder, projection=project)(images), project(mean_pool(encoder(images).last_hidden_state))
    )


def test_a_pooling_with_parameters_is_trained():
    class Weighted(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(5))

        def forward(self, tokens, mask):
            return torch.einsum("ntd,t->nd", tokens, self.weight)

    tower = Tower(None, pooling=Weighted())
    tower(torch.randn(2, 5, 3)).sum().backward()
    assert [name for name, value in tower.named_parameters() if value.grad is not None] == ["pooling.weight"]


def test_two_towers_score_with_the_metric():
    metric = perturbed(GSSFMetric(6, block_size=3))
    model = TwoTower(nn.Linear(4, 6), nn.Linear(5, 6), metric)
    images, texts = torch.randn(3, 4), torch.randn(7, 5)
    batch = {"images": images, "image_ids": torch.arange(3), "texts": texts, "text_ids": torch.arange(7)}
    embedding = model(batch)
    assert not embedding.one_sided
    torch.testing.assert_close(embedding.queries, model.encode_image(images))
    torch.testing.assert_close(embedding.gallery, model.encode_text(texts))
    torch.testing.assert_close(model.score(*embedding[::2]), metric(embedding.queries, embedding.gallery))
    cosine = TwoTower(model.image_tower, model.text_tower)
    expected = cosine_similarity(embedding.queries[:, None], embedding.gallery[None], dim=-1)
    torch.testing.assert_close(cosine.score(*cosine(batch)[::2]), expected)
    assert len(cosine.encoders()) == 2


def test_one_tower_is_symmetric_and_one_sided():
    metric = perturbed(GSSFMetric(6, block_size=3, constraint="symmetric"))
    model = OneTower(nn.Linear(4, 6), metric)
    embedding = model({"inputs": torch.randn(5, 4), "labels": torch.tensor([0, 0, 1, 1, 2])})
    assert embedding.one_sided
    assert embedding.query_ids is embedding.gallery_ids
    scores = model.score(embedding.queries, embedding.gallery)
    torch.testing.assert_close(scores, scores.T)
    OneTower(None, GSSFMetric(6, terms=("diagonal",)))
    OneTower(None, GSSFMetric(6, block_size=3, constraint="psd"))


@pytest.mark.bad_input
def test_bad_input_is_named():
    with pytest.raises(ArgumentError, match="`metric` must be symmetric in a model of one tower"):
        OneTower(None, GSSFMetric(6, block_size=3))
    with pytest.raises(ArgumentError, match=r"`batch` must have the keys \('inputs', 'labels'\), but got .*'image'"):
        OneTower(None)({"image": torch.ones(1, 2), "labels": torch.ones(1)})
    with pytest.raises(ArgumentError, match="`queries` must have 6 channels"):
        TwoTower(None, None, GSSFMetric(6, block_size=3)).score(torch.ones(2, 5), torch.ones(2, 6))
