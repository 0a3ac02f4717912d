"""Finding, shaping and pooling features."""

import pytest
import torch
from transformers import BertConfig, BertModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from gssf_plug.errors import ArgumentError
from gssf_plug.features import (
    GPO,
    SizeAugmentation,
    as_tokens,
    cls_pool,
    feature_tensor,
    last_pool,
    max_pool,
    mean_max_pool,
    mean_pool,
)

POOLINGS = [cls_pool, mean_pool, max_pool]


def slow_pool(pool, tokens, mask):
    rows = []
    for row, valid in zip(tokens, mask, strict=True):
        kept = row[valid.bool()]
        if len(kept) == 0:
            rows.append(torch.zeros(tokens.shape[-1], dtype=tokens.dtype))
        elif pool is cls_pool:
            rows.append(kept[0])
        else:
            rows.append(kept.mean(0) if pool is mean_pool else kept.max(0).values)
    return torch.stack(rows)


@pytest.mark.parametrize("pool", POOLINGS)
@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.long, torch.float32])
def test_pools_as_the_slow_reference(pool, mask_dtype):
    tokens = torch.randn(6, 5, 4, dtype=torch.float64)
    mask = torch.tensor(
        [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [0, 1, 0, 1, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
    ).to(mask_dtype)
    torch.testing.assert_close(pool(tokens, mask), slow_pool(pool, tokens, mask))


@pytest.mark.parametrize("pool", POOLINGS)
@pytest.mark.parametrize("rubbish", [1e30, -1e30, float("nan"), float("inf")])
def test_padding_never_counts(pool, rubbish):
    tokens = -torch.rand(2, 4, 3) - 1
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]])
    spoilt = torch.where(mask[..., None].bool(), tokens, rubbish).requires_grad_()
    pooled = pool(spoilt, mask)
    torch.testing.assert_close(pooled, slow_pool(pool, tokens, mask))
    pooled.sum().backward()
    assert spoilt.grad is not None
    assert spoilt.grad[mask == 0].eq(0).all()
    assert spoilt.grad.isfinite().all()


@pytest.mark.parametrize("pool", POOLINGS)
def test_no_mask_is_a_full_mask(pool):
    tokens = torch.randn(3, 5, 4)
    torch.testing.assert_close(pool(tokens, None), pool(tokens, torch.ones(3, 5)))


@pytest.mark.parametrize("pool", POOLINGS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_its_dtype_and_does_not_overflow(pool, dtype):
    tokens = torch.full((1, 3000, 2), 60.0, dtype=dtype)
    for mask in (None, torch.ones(1, 3000)):
        pooled = pool(tokens, mask)
        assert pooled.dtype == dtype
        torch.testing.assert_close(pooled.float(), torch.full((1, 2), 60.0))


def test_as_tokens():
    assert as_tokens(torch.randn(2, 3)).shape == (2, 1, 3)
    assert as_tokens(torch.randn(2, 5, 3)).shape == (2, 5, 3)
    maps = torch.randn(2, 3, 4, 5)
    tokens = as_tokens(maps)
    assert tokens.shape == (2, 20, 3)
    torch.testing.assert_close(tokens[1, 7], maps[1, :, 1, 2])
    torch.testing.assert_close(mean_pool(tokens), maps.mean((2, 3)))


def test_feature_tensor_takes_every_form():
    x, y = torch.randn(2, 3), torch.randn(2, 4)
    assert feature_tensor(x) is x
    assert feature_tensor((x, y)) is x
    assert feature_tensor([None, y]) is y
    assert feature_tensor({"other": 1, "pooler_output": y}) is y
    output = BaseModelOutputWithPooling(last_hidden_state=torch.randn(2, 5, 3), pooler_output=y)
    assert feature_tensor(output) is output.last_hidden_state
    assert feature_tensor(output, name="pooler_output") is y


def test_a_real_bert_pools_the_same_with_more_padding():
    bert = BertModel(
        BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
    ).eval()
    ids = torch.randint(1, 20, (2, 6))
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
    for pool in POOLINGS:
        full = pool(feature_tensor(bert(input_ids=ids, attention_mask=mask)), mask)
        short = pool(feature_tensor(bert(input_ids=ids[1:, :3], attention_mask=mask[1:, :3])), mask[1:, :3])
        torch.testing.assert_close(full[1:], short, atol=1e-5, rtol=1e-5)


@pytest.mark.bad_input
def test_bad_input_is_named():
    with pytest.raises(ArgumentError, match=r"`mask` must have shape \(2, 3\), one value per token"):
        mean_pool(torch.randn(2, 3, 4), torch.ones(2, 4))
    with pytest.raises(ArgumentError, match=r"`features` must be vectors .* but got shape \(3,\)"):
        as_tokens(torch.randn(3))
    with pytest.raises(ArgumentError, match=r"`output` must hold one of \('logits',\), but got entries \['a'\]"):
        feature_tensor({"a": torch.ones(2)}, name="logits")
    with pytest.raises(ArgumentError, match=r"`output` must hold one of \('a tensor',\), but got str"):
        feature_tensor("text")


def test_the_last_token_and_mean_plus_largest():
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
