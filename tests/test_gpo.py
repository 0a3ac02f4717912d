"""GPO pooling against its published code, and BNNeck."""

import math

import pytest
import torch
from torch import nn

from gssf_plug.errors import ArgumentError
from gssf_plug.features import GPO, BNNeck


def published(gpo, tokens, lengths):
    """VSE∞'s code, one row at a time: places coded, BiGRU over the valid ones, softmax at 0.1, sorted features."""
    pooled = []
    for row, length in zip(tokens, lengths, strict=True):
        if length == 0:
            pooled.append(torch.zeros(row.shape[1]))
            continue
        places = torch.zeros(length, gpo.code)
        for place in range(length):
            for even in range(0, gpo.code, 2):
                angle = place * math.exp(even * -(math.log(10000.0) / gpo.code))
                places[place, even], places[place, even + 1] = math.sin(angle), math.cos(angle)
        states, _ = gpo.gru(places[None])
        half = states.shape[-1] // 2
        scores = gpo.weight((states[..., :half] + states[..., half:]) / 2)[0]
        weights = torch.softmax(scores / 0.1, dim=0)
        pooled.append((row[:length].sort(dim=0, descending=True).values * weights).sum(0))
    return torch.stack(pooled)


def test_equals_the_published_code():
    gpo, tokens, lengths = GPO(), torch.randn(5, 7, 6), torch.tensor([7, 3, 0, 3, 1])
    mask = torch.arange(7) < lengths[:, None]
    torch.testing.assert_close(gpo(tokens, mask), published(gpo, tokens, lengths.tolist()))
    torch.testing.assert_close(gpo(tokens), published(gpo, tokens, [7] * 5))


def test_masked_tokens_and_the_order_of_tokens_never_count():
    gpo, tokens = GPO(code=8, hidden=4), torch.randn(3, 6, 5)
    mask = torch.tensor([[0, 1, 1, 0, 1, 0], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1]])
    right = gpo(tokens, mask)
    tokens = tokens.masked_fill(mask[..., None] == 0, float("nan"))
    torch.testing.assert_close(gpo(tokens, mask), right)
    order = torch.randperm(6)
    torch.testing.assert_close(gpo(tokens[:, order], mask[:, order]), right)


def test_contains_max_and_mean():
    gpo, tokens = GPO(), torch.randn(4, 9, 6)
    nn.init.zeros_(gpo.weight.weight)
    torch.testing.assert_close(gpo(tokens), tokens.mean(1))
    gpo.weights = lambda lengths, width: nn.functional.one_hot(torch.zeros_like(lengths), width).float()
    torch.testing.assert_close(gpo(tokens), tokens.amax(1))


def test_trains_and_keeps_half_precision():
    gpo, tokens = GPO(), torch.randn(4, 9, 6, requires_grad=True)
    gpo(tokens, torch.rand(4, 9) < 0.7).square().sum().backward()
    for parameter in (tokens, *gpo.parameters()):
        assert bool(parameter.grad.isfinite().all())
        assert bool((parameter.grad != 0).any())
    assert gpo(tokens.detach().bfloat16()).dtype == torch.bfloat16


@pytest.mark.bad_input
def test_bad_input():
    with pytest.raises(ArgumentError, match="`code` must be even and at least 2, but got 7"):
        GPO(code=7)
    with pytest.raises(ArgumentError, match=r"`mask` must have shape \(2, 3\)"):
        GPO()(torch.randn(2, 3, 4), torch.ones(2, 4))


def test_the_neck_normalises_and_its_bias_stays_zero():
    neck = BNNeck(6)
    x = 3 + 2 * torch.randn(50, 6)
    y = neck(x)
    torch.testing.assert_close(y.mean(0), torch.zeros(6), atol=1e-5, rtol=0)
    y.square().sum().backward()
    assert neck.bias.grad is None
    assert neck.weight.grad is not None
