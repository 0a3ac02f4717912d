"""Towers with token projections, the encoders of the classic frameworks, fragments."""

import pytest
import torch
from torch import nn
from transformers import ConvNextConfig, ConvNextModel, ResNetBackbone, ResNetConfig, ResNetModel, ViTConfig, ViTModel

from gssf_plug.errors import ArgumentError
from gssf_plug.features import GPO, SizeAugmentation, last_pool, max_pool, mean_max_pool, mean_pool
from gssf_plug.retrieval import (
    AnySize,
    FrozenNorms,
    LastStrideOne,
    LogSumExp,
    ResidualMLP,
    TextToImage,
    Tower,
    WordGRU,
)
from gssf_plug.retrieval.models.embedding import Embedding, Fragments, gather_embedding, join_embeddings


def resnet():
    return ResNetModel(ResNetConfig(embedding_size=4, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic"))


def regions(lengths=(4, 2, 3), width=5, dim=6):
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    features = torch.randn(len(lengths), width, dim).masked_fill(~mask[..., None], float("nan"))
    return {"features": features, "attention_mask": mask}


def test_a_token_projection_sees_valid_tokens_only():
    inputs, seen = regions(), []
    project = nn.Linear(6, 4)
    project.register_forward_hook(lambda module, given, output: seen.append(given[0].shape))
    tower = Tower(None, token_projection=project)
    expected = torch.stack([project(row[valid]).mean(0) for row, valid in zip(*inputs.values(), strict=True)])
    torch.testing.assert_close(tower(inputs), expected)
    assert seen[-1] == (9, 6)
    fragments = tower.fragments(inputs)
    assert fragments.features.isfinite().all()
    assert torch.equal(fragments.mask, inputs["attention_mask"])
    torch.testing.assert_close(mean_pool(fragments.features, fragments.mask), expected)
    whole = torch.randn(3, 5, 6)
    torch.testing.assert_close(tower(whole), project(whole).mean(1))
    torch.testing.assert_close(tower(whole[:, 0]), project(whole[:, 0]))
    assert tower.fragments(whole).mask.all()
    vectors = Tower(nn.Conv2d(3, 6, 3), token_projection=project, pooling=max_pool)(torch.randn(2, 3, 8, 8))
    assert vectors.shape == (2, 4)


def test_padding_is_in_no_batch_statistics():
    mlp = ResidualMLP(6, 4)
    inputs = regions()
    right = mlp(inputs["features"][inputs["attention_mask"]]).detach()
    wide = {name: nn.functional.pad(part, (0, 0, 0, 7) if part.ndim == 3 else (0, 7)) for name, part in inputs.items()}
    mlp.mlp[1].reset_running_stats()
    tokens = Tower(None, token_projection=mlp).fragments(wide)
    torch.testing.assert_close(tokens.features[tokens.mask], right)


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


def test_poolings():
    tokens, mask = torch.randn(3, 5, 4), torch.tensor([[1, 1, 1, 0, 0], [0, 1, 0, 1, 0], [0, 0, 0, 0, 0]])
    expected = torch.stack([tokens[0, 2], tokens[1, 3], torch.zeros(4)])
    torch.testing.assert_close(last_pool(tokens, mask), expected)
    torch.testing.assert_close(last_pool(tokens), tokens[:, -1])
    torch.testing.assert_close(mean_max_pool(tokens), tokens.mean(1) + tokens.amax(1))


def test_size_augmentation_drops_in_training_alone_and_never_all():
    tokens = torch.randn(400, 10, 3)
    mask = torch.ones(400, 10)
    mask[:, 8:] = 0
    seen = []

    def pooling(tokens, mask):
        seen.append(mask)
        return mean_pool(tokens, mask)

    augmented = SizeAugmentation(pooling, share=0.2)
    augmented(tokens, mask)
    assert seen[-1][:, 8:].eq(0).all()
    assert seen[-1][:, :8].float().mean().item() == pytest.approx(0.8, abs=0.03)
    augmented.eval()(tokens, mask)
    assert seen[-1] is mask
    SizeAugmentation(pooling, share=0.99)(tokens, mask)
    assert seen[-1].any(1).all()
    gpo = GPO()
    torch.testing.assert_close(SizeAugmentation(gpo).eval()(tokens, mask), gpo(tokens, mask))
    assert len(list(SizeAugmentation(gpo).parameters())) == len(list(gpo.parameters()))
    with pytest.raises(ArgumentError, match="`share` must be at least 0 and below 1, but got 1"):
        SizeAugmentation(mean_pool, 1)


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


def vit():
    return ViTModel(
        ViTConfig(
            hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=8, patch_size=4
        )
    )


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


def test_fragments_are_joined_by_widening():
    one, two = (Fragments(torch.randn(2, t, 3), torch.rand(2, t) < 0.6) for t in (2, 4))
    whole = join_embeddings([Embedding(part, torch.arange(2), part[:1], torch.arange(1)) for part in (one, two)])
    assert whole.queries.features.shape == (4, 4, 3)
    assert torch.equal(whole.queries.mask[2:], two.mask)
    assert not whole.queries.mask[:2, 2:].any()
    assert whole.gallery_ids.tolist() == [0, 0]
    assert len(whole.gallery) == 2
    gathered = gather_embedding(whole)
    torch.testing.assert_close(gathered.queries.features, whole.queries.features)


@pytest.mark.bad_input
def test_bad_input_is_named():
    with pytest.raises(ArgumentError, match=r"`inputs` must hold 'features' where a tower has no encoder.*'pixels'"):
        Tower(None)({"pixels": torch.ones(1, 2)})
    with pytest.raises(ArgumentError, match="`features` must have the 6 channels that .* reads, but got 5"):
        Tower(None, token_projection=nn.Linear(6, 4))(torch.ones(2, 3, 5))
    with pytest.raises(ArgumentError, match="`features` must have the 7 channels that .* reads, but got 6"):
        Tower(None, token_projection=ResidualMLP(7, 4))(regions())
    with pytest.raises(ArgumentError, match=r"`input_ids` must lie in 0 … 4, but got 0 … 9\. Build WordGRU"):
        WordGRU(5, 4)(torch.tensor([[0, 9]]))
    with pytest.raises(ArgumentError, match="`temperature` must be above 0, but got 0"):
        TextToImage(temperature=0)
    with pytest.raises(ArgumentError, match="`sharpness` must be above 0, but got -1"):
        LogSumExp(-1)
    with pytest.raises(ArgumentError, match="`attention_mask` must have its padding on the right"):
        WordGRU(5, 4)(torch.ones(1, 3, dtype=torch.long), torch.tensor([[0, 1, 1]]))
