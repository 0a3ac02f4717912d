"""GSSFAttention against nn.MultiheadAttention and against attention written out."""

import pytest
import torch
from torch import Tensor, nn

from gssf_plug.attention import GSSFAttention
from gssf_plug.errors import ArgumentError


def twins(kdim: int | None = None, vdim: int | None = None) -> tuple[GSSFAttention, nn.MultiheadAttention]:
    """The two layers with the same weights."""
    theirs = nn.MultiheadAttention(16, 4, batch_first=True, kdim=kdim, vdim=vdim)
    ours = GSSFAttention(16, 4, block_size=2, kdim=kdim, vdim=vdim)
    nn.init.normal_(theirs.in_proj_bias)
    separate = (theirs.q_proj_weight, theirs.k_proj_weight, theirs.v_proj_weight)
    weights = theirs.in_proj_weight.chunk(3) if theirs.in_proj_weight is not None else separate
    for projection, weight, bias in zip((ours.q_proj, ours.k_proj, ours.v_proj), weights,
                                        theirs.in_proj_bias.chunk(3), strict=True):  # fmt: skip
        projection.load_state_dict({"weight": weight, "bias": bias})
    ours.out_proj.load_state_dict(theirs.out_proj.state_dict())
    return ours.eval(), theirs.eval()


PADDING = torch.tensor([[False] * 6 + [True] * 3, [False] * 9])


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("masks", [{}, {"key_padding_mask": PADDING}, {"attn_mask": torch.rand(5, 9) > 0.7}])
def test_neutral_equals_multihead_attention(masks: dict[str, Tensor], need_weights: bool) -> None:
    ours, theirs = twins(kdim=6, vdim=10)
    query, key, value = torch.randn(2, 5, 16), torch.randn(2, 9, 6), torch.randn(2, 9, 10)
    expected, weights = theirs(query, key, value, average_attn_weights=False, **masks)
    got, our_weights = ours(query, key, value, need_weights=need_weights, **masks)
    torch.testing.assert_close(got, expected)
    if need_weights:
        torch.testing.assert_close(our_weights, weights)


def test_causal_self_attention_equals_multihead_attention() -> None:
    ours, theirs = twins()
    x = torch.randn(2, 5, 16)
    ahead = torch.ones(5, 5, dtype=torch.bool).triu(1)
    expected = theirs(x, x, x, attn_mask=ahead)[0]
    torch.testing.assert_close(ours(x, is_causal=True)[0], expected)
    torch.testing.assert_close(ours(x, is_causal=True, need_weights=True)[0], expected)


@pytest.mark.parametrize("normalize", [False, True])
def test_score_is_the_metric_head_by_head(normalize: bool) -> None:
    layer = GSSFAttention(16, 4, block_size=2, normalize=normalize).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    q, k = layer.q_proj(x), layer.k_proj(x)
    matrix = layer.metric.matrix()
    got = layer(x, need_weights=True)[1]
    for head in range(4):
        rows = slice(4 * head, 4 * head + 4)
        left, right = q[..., rows], k[..., rows]
        scale = 0.5
        if normalize:
            left, right = (t / t.norm(dim=-1, keepdim=True) for t in (left, right))
            scale = layer.log_scale[head].exp()
        score = torch.einsum("bti,ij,bsj->bts", left, matrix[rows, rows], right) * scale
        torch.testing.assert_close(got[:, head], score.softmax(-1))


def test_scale_trains_only_where_it_is_used() -> None:
    for normalize in (False, True):
        layer = GSSFAttention(16, 4, block_size=2, normalize=normalize)
        layer(torch.randn(2, 5, 16))[0].square().sum().backward()
        assert (layer.log_scale.grad is not None) is normalize
        assert all(p.grad is not None for p in layer.metric.parameters())


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((16, 3), {}, "`num_heads` must divide embed_dim=16, but got 3"),
        ((16, 4), {"block_size": 3}, "`block_size` must divide the head dimension 4, but got 3"),
        ((16, 4), {"block_size": 2, "dropout": 1.0}, "`dropout` must lie in"),
    ],
)
def test_mistakes_are_named(arguments: tuple[int, int], options: dict[str, object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        GSSFAttention(*arguments, **options)


@pytest.mark.bad_input
def test_widths_are_checked() -> None:
    with pytest.raises(ArgumentError, match=r"`key` must have the shape \(batch, length, 6\), but got \(2, 9, 16\)"):
        GSSFAttention(16, 4, block_size=2, kdim=6)(torch.randn(2, 5, 16), torch.randn(2, 9, 16))


@pytest.mark.bad_input
@pytest.mark.parametrize("place", ["query", "key", "value"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_another_dtype_than_that_of_the_weights_is_named(place: str, dtype: torch.dtype) -> None:
    inputs = {name: torch.randn(2, 5, 16) for name in ("query", "key", "value")}
    inputs[place] = inputs[place].to(dtype)
    layer = GSSFAttention(16, 4, block_size=2)
    message = (
        rf"`{place}` must be in torch.float32, as the weights of the layer are, but got {dtype}\. .*\.to\({dtype}\)"
    )
    with pytest.raises(ArgumentError, match=message):
        layer(**inputs)
    assert layer.to(dtype)(**{name: x.to(dtype) for name, x in inputs.items()})[0].dtype == dtype  # as it says


@pytest.mark.bad_input
def test_autocast_converts_all_but_float64() -> None:
    layer = GSSFAttention(16, 4, block_size=2)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(2, 5, 16), torch.randn(2, 5, 16).half())[0].dtype == torch.bfloat16
        with pytest.raises(ArgumentError, match="`key` must be in torch.float32, .* but got torch.float64"):
            layer(torch.randn(2, 5, 16), torch.randn(2, 5, 16).double())


@pytest.mark.bad_input
def test_a_device_without_autocast() -> None:
    layer, x = GSSFAttention(16, 4, block_size=2).to("meta"), torch.randn(2, 5, 16, device="meta")
    assert layer(x)[0].shape == x.shape
    with pytest.raises(ArgumentError, match="`query` must be in torch.float32, .* but got torch.float16"):
        layer(x.half())


class Other(Tensor):
    """Weights that multiply in their own way, as quantised ones do."""


@pytest.mark.bad_input
@pytest.mark.parametrize("converted", ["by a hook", "by a wrapper", "by its weights"])
def test_who_converts_for_the_projection_is_left_alone(converted: str) -> None:
    layer = GSSFAttention(16, 4, block_size=2)
    plain = layer.q_proj
    if converted == "by a hook":
        plain.register_forward_pre_hook(lambda module, inputs: (inputs[0].float(),))
    elif converted == "by a wrapper":
        layer.q_proj = nn.Sequential(plain)
        layer.q_proj.in_features = 16
        plain.register_forward_pre_hook(lambda module, inputs: (inputs[0].float(),))
    else:
        plain.weight = nn.Parameter(plain.weight.detach().as_subclass(Other))
        plain.forward = lambda x: nn.functional.linear(x.float(), plain.weight, plain.bias).as_subclass(Tensor)
    x = torch.randn(2, 5, 16).half()
    assert layer(x, x.float())[0].dtype == torch.float32
