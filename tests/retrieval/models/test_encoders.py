"""The encoders of the classic frameworks: the published formulas, padding without a trace, strides, frozen norms."""

import pytest
import torch
from torch import nn
from transformers import ConvNextConfig, ConvNextModel, ResNetBackbone, ResNetConfig, ResNetModel, ViTConfig, ViTModel

from gssf_plug.errors import ArgumentError
from gssf_plug.features import last_pool
from gssf_plug.retrieval import AnySize, FrozenNorms, LastStrideOne, ResidualMLP, Tower, WordGRU


def resnet():
    return ResNetModel(ResNetConfig(embedding_size=4, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic"))


def vit():
    return ViTModel(
        ViTConfig(
            hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=8, patch_size=4
        )
    )


def test_residual_mlp_is_the_published_sum():
    mlp, rows = ResidualMLP(6, 4).eval(), torch.randn(7, 6)
    nn.init.normal_(mlp.mlp[1].running_mean)
    hidden = torch.relu(mlp.mlp[1](mlp.mlp[0](rows)))
    torch.testing.assert_close(mlp(rows), mlp.linear(rows) + mlp.mlp[3](hidden))
    assert mlp.mlp[0].out_features == 2


def test_word_gru_reads_each_caption_alone():
    gru = WordGRU(20, 6, embedding=5, layers=2)
    ids = torch.randint(0, 20, (3, 7))
    lengths = torch.tensor([7, 2, 0])
    states = gru(ids, (torch.arange(7) < lengths[:, None]).long())
    for row, (sentence, length) in enumerate(zip(ids, lengths, strict=True)):
        if length:
            own, _ = gru.gru(gru.words(sentence[None, :length]))
            torch.testing.assert_close(states[row, :length], (own[0, :, :6] + own[0, :, 6:]) / 2)
        assert states[row, length:].eq(0).all()
    assert gru.words.weight.abs().max() <= 0.1
    one = WordGRU(20, 6, bidirectional=False)
    tower = Tower(one, pooling=last_pool)
    mask = torch.arange(7) < torch.tensor([7, 2, 4])[:, None]
    last = torch.stack([one.gru(one.words(ids[row, :length][None]))[1][0, 0] for row, length in enumerate((7, 2, 4))])
    torch.testing.assert_close(tower({"input_ids": ids, "attention_mask": mask}), last)
    assert WordGRU(20, 6, dropout=0.9)(ids).shape == (3, 7, 6)


def test_last_stride_one_doubles_the_map_and_keeps_the_weights():
    images, plain = torch.randn(2, 3, 64, 32), resnet().eval()
    before = plain(images).last_hidden_state
    keys = plain.state_dict().keys()
    tower = Tower(LastStrideOne(plain))
    after = tower.encoder(images).last_hidden_state
    assert (before.shape, after.shape) == ((2, 12, 8, 4), (2, 12, 16, 8))
    torch.testing.assert_close(tower(images), after.mean((2, 3)))
    assert plain.state_dict().keys() == keys
    with pytest.raises(ArgumentError, match="`encoder` must be a CNN with `encoder.stages`.* got ViTModel"):
        LastStrideOne(vit())
    backbone = ResNetBackbone(plain.config).eval()
    torch.testing.assert_close(Tower(backbone)(images), backbone(images).feature_maps[-1].mean((2, 3)))
    assert Tower(LastStrideOne(backbone)).fragments(images).features.shape == (2, 16 * 8, 12)
    LastStrideOne(ConvNextModel(ConvNextConfig(hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1])))


def test_any_size_interpolates_positions():
    encoder = AnySize(vit().eval())
    square = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(encoder(square).last_hidden_state, encoder.encoder(square).last_hidden_state)
    assert encoder(torch.randn(2, 3, 16, 8)).last_hidden_state.shape == (2, 9, 8)


def test_frozen_norms_stay():
    encoder = FrozenNorms(resnet())
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    encoder.train()
    optimizer = torch.optim.SGD([p for p in encoder.parameters() if p.requires_grad], lr=0.1)
    encoder(torch.randn(4, 3, 32, 32)).last_hidden_state.square().sum().backward()
    optimizer.step()
    changed = {name for name, value in encoder.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert not any("normalization" in name for name in changed)
    assert encoder.training
    assert not any(part.training for part in encoder.modules() if isinstance(part, nn.BatchNorm2d))


@pytest.mark.bad_input
def test_words_outside_the_vocabulary_and_padding_on_the_left_are_named():
    with pytest.raises(ArgumentError, match=r"`input_ids` must lie in 0 … 4, but got 0 … 9\. Build WordGRU"):
        WordGRU(5, 4)(torch.tensor([[0, 9]]))
    with pytest.raises(ArgumentError, match="`attention_mask` must have its padding on the right"):
        WordGRU(5, 4)(torch.ones(1, 3, dtype=torch.long), torch.tensor([[0, 1, 1]]))
