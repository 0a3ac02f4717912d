"""What reaches the softmax, read there in float64: for every layout, qᵀAk of the model's own q and k, head by head.

The references know the modelling code and nothing of the library's layouts: q and k are cut out of the projections'
outputs of the bare model by hand, A is multiplied in, the rotary embedding is turned by hand. What is left of a logit
without qᵀk (a mask, ALiBi) is read from the bare model, and must depend on positions alone.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from attention.patching import perturb
from torch import Tensor, nn
from transformers import (
    BloomConfig,
    BloomModel,
    CTRLConfig,
    CTRLModel,
    CvtConfig,
    CvtModel,
    DeepseekV3Config,
    DeepseekV3Model,
    FalconConfig,
    FalconModel,
    Gemma3TextConfig,
    Gemma3TextModel,
    GPTNeoXConfig,
    GPTNeoXModel,
    Olmo2Config,
    Olmo2Model,
    Qwen3Config,
    Qwen3Model,
)

from gssf_plug.attention import patch_attention

H, D, T = 4, 8, 6  # heads, channels of a head, tokens
IDS = torch.tensor([[5, 9, 23, 41, 7, 12], [8, 30, 2, 19, 60, 11]])
ROWS = torch.randn(2, T, H * D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TEXT = {"vocab_size": 64, "hidden_size": H * D, "num_hidden_layers": 1, "num_attention_heads": H,
        "attn_implementation": "eager"}  # fmt: skip
LLAMA = TEXT | {"intermediate_size": 40, "num_key_value_heads": 2, "pad_token_id": 0}

Outputs = Mapping[str, Tensor]
QueryAndKey = Callable[[nn.Module, Outputs], tuple[Tensor, Tensor]]
Turn = Callable[[Tensor, Tensor, Tensor], Tensor]


def by_head(x: Tensor) -> Tensor:
    """(B, T, heads·size) or (B, T, heads, size) -> (B, heads, T, size)."""
    return (x if x.ndim == 4 else x.unflatten(-1, (-1, D))).transpose(1, 2)


def separate(query: str, key: str) -> QueryAndKey:
    """Two modules, the key's heads shared by neighbouring queries' where they are fewer."""

    def cut(layer: nn.Module, outputs: Outputs) -> tuple[Tensor, Tensor]:
        q, k = by_head(outputs[query]), by_head(outputs[key])
        return q, k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)

    return cut


def heads_first(layer: nn.Module, outputs: Outputs) -> tuple[Tensor, Tensor]:
    """Norms behind the axis of heads: (B, heads, T, size) already."""
    return outputs["q_norm"], outputs["k_norm"].repeat_interleave(2, dim=1)


def head_by_head(layer: nn.Module, outputs: Outputs) -> tuple[Tensor, Tensor]:
    """q|k|v of each head."""
    q, k, _ = outputs["query_key_value"].unflatten(-1, (H, 3, D)).transpose(1, 2).unbind(-2)
    return q, k


def group_by_group(layer: nn.Module, outputs: Outputs) -> tuple[Tensor, Tensor]:
    """Two groups of two queries, one key, one value."""
    packed = outputs["query_key_value"].unflatten(-1, (2, 4, D))
    q, k = packed[..., :2, :].flatten(2, 3), packed[..., 2:3, :].expand(-1, -1, -1, 2, -1).flatten(2, 3)
    return q.transpose(1, 2), k.transpose(1, 2)


def one_key(layer: nn.Module, outputs: Outputs) -> tuple[Tensor, Tensor]:
    """All queries, then one key and one value for all of them."""
    packed = by_head(outputs["query_key_value"])
    return packed[:, :H], packed[:, H : H + 1].expand(-1, H, -1, -1)


def compressed(layer: nn.Module, outputs: Outputs) -> tuple[Tensor, Tensor]:
    """DeepSeek: 8 channels without position and 4 with, which all heads of the key share."""
    q = outputs["q_b_proj"].unflatten(-1, (H, 12)).transpose(1, 2)
    plain = outputs["kv_b_proj"][:, 0].unflatten(-1, (H, 16)).transpose(1, 2)[..., :8]
    shared = outputs["kv_a_proj_with_mqa"][:, None, :, -4:].expand(-1, H, -1, -1)
    return q, torch.cat([plain, shared], -1)


def thirds(layer: nn.Module, outputs: Outputs) -> tuple[Tensor, Tensor]:
    """nn.MultiheadAttention has no module for its query."""
    attention = layer
    q, k, _ = (ROWS @ attention.in_proj_weight.T + attention.in_proj_bias).chunk(3, -1)
    return by_head(q), by_head(k)


def halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding: channel i turns with channel i + half; only the first channels where cos is narrower."""
    turned, rest = x.split([cos.shape[-1], x.shape[-1] - cos.shape[-1]], -1)
    a, b = turned.chunk(2, -1)
    return torch.cat([turned * cos + torch.cat([-b, a], -1) * sin, rest], -1)


def last_four_in_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """DeepSeek: neighbours turn, even channels are put before odd ones."""
    plain, turned = x[..., :-4], x[..., -4:]
    return torch.cat([plain, halves(torch.cat([turned[..., ::2], turned[..., 1::2]], -1), cos, sin)], -1)


class Diffusers(nn.Module):
    """Cross-attention as people write it after diffusers."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.scale = H, D**-0.5
        self.to_q, self.to_k, self.to_v = (nn.Linear(H * D, H * D, bias=False) for _ in range(3))
        self.to_out = nn.Linear(H * D, H * D)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        context = x if context is None else context
        q, k, v = (f(y).unflatten(-1, (self.heads, -1)) for f, y in zip(
            (self.to_q, self.to_k, self.to_v), (x, context, context), strict=True))  # fmt: skip
        weights = (torch.einsum("bihd,bjhd->bhij", q, k) * self.scale).softmax(dim=-1)
        return self.to_out(torch.einsum("bhij,bjhd->bihd", weights, v).flatten(-2))


class Teaching(nn.Module):
    """As in many a course: Wq, Wk, Wv, an additive mask."""

    def __init__(self) -> None:
        super().__init__()
        self.n_heads, self.head_dim = H, D
        self.Wq, self.Wk, self.Wv, self.Wo = (nn.Linear(H * D, H * D) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).view(len(x), -1, self.n_heads, self.head_dim).transpose(1, 2) for f in
                   (self.Wq, self.Wk, self.Wv))  # fmt: skip
        scores = q @ k.transpose(-2, -1) / self.head_dim**0.5
        scores = scores + torch.full_like(scores[0, 0], -1e9).triu(1)
        return self.Wo((torch.nn.functional.softmax(scores, -1) @ v).transpose(1, 2).flatten(2))


class Pixels(nn.Module):
    """Attention of a U-Net: the projections are 1×1 convolutions, a pixel is a token."""

    num_heads = H

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Conv2d(H * D, H * D, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).flatten(2).unflatten(1, (H, D)) for f in (self.q, self.k, self.v))
        weights = torch.softmax(q.mT @ k * D**-0.5, dim=-1)
        return (v @ weights.mT).flatten(1, 2).unflatten(-1, x.shape[-2:])


def pixels(layer: nn.Module, outputs: Outputs) -> tuple[Tensor, Tensor]:
    q, k = (outputs[name].flatten(2).unflatten(1, (H, D)).mT for name in ("q", "k"))
    return q, k


class Own(nn.Module):
    """A model of people's own around one attention layer; `example` names its argument."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x)


class OwnTorch(Own):
    """Around torch's own layer."""

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=True)[0]


@dataclass(frozen=True)
class Case:
    """One way to keep the query, with the model's arguments, its attention layer, and q and k by hand."""

    name: str
    build: Callable[[], nn.Module]
    cut: QueryAndKey
    layer: str
    inputs: dict[str, Tensor] = field(default_factory=lambda: {"input_ids": IDS})
    turn: Turn | None = None
    scale: float = D**-0.5
    masked: bool = True


def falcon(**options: object) -> FalconModel:
    return FalconModel(FalconConfig(**TEXT, bias=True, **options))


X, IMAGE = {"x": ROWS}, torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
MAP = {"x": ROWS.mT.unflatten(-1, (2, 3)).contiguous()}
CASES = [
    Case("query norm per head (Qwen3)", lambda: Qwen3Model(Qwen3Config(**LLAMA, head_dim=D)),
         separate("q_norm", "k_norm"), "layers.0.self_attn", turn=halves),
    Case("query norm of 1 + weight (Gemma3)", lambda: Gemma3TextModel(Gemma3TextConfig(
        **LLAMA, head_dim=D, query_pre_attn_scalar=3, layer_types=["full_attention"])),
         heads_first, "layers.0.self_attn", turn=halves, scale=3**-0.5),
    Case("query norm over all heads (OLMo2)", lambda: Olmo2Model(Olmo2Config(**LLAMA)),
         separate("q_norm", "k_norm"), "layers.0.self_attn", turn=halves),
    Case("grouped, group by group (new Falcon)", lambda: falcon(new_decoder_architecture=True, num_kv_heads=2),
         group_by_group, "h.0.self_attention", turn=halves),
    Case("head by head with ALiBi (old Falcon)", lambda: falcon(multi_query=False, alibi=True),
         head_by_head, "h.0.self_attention"),
    Case("one key for all (Falcon)", lambda: falcon(multi_query=True), one_key, "h.0.self_attention", turn=halves),
    Case("head by head with ALiBi (BLOOM)", lambda: BloomModel(BloomConfig(vocab_size=64, hidden_size=H * D, n_layer=1,
                                                                           n_head=H)),
         head_by_head, "h.0.self_attention"),
    Case("head by head, half turned (GPT-NeoX)", lambda: GPTNeoXModel(GPTNeoXConfig(
        **TEXT, intermediate_size=40, rotary_pct=0.5)), head_by_head, "layers.0.attention", turn=halves),
    Case("low rank (DeepSeek V3)", lambda: DeepseekV3Model(DeepseekV3Config(
        **TEXT, num_key_value_heads=H, intermediate_size=40, moe_intermediate_size=8, n_routed_experts=4, n_group=1,
        topk_group=1, num_experts_per_tok=2, q_lora_rank=16, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=4,
        v_head_dim=8, first_k_dense_replace=1, pad_token_id=0)),
         compressed, "layers.0.self_attn", turn=last_four_in_pairs, scale=12**-0.5),
    Case("convolution before the projection (CvT)", lambda: CvtModel(CvtConfig(
        num_channels=3, embed_dim=[H * D], num_heads=[H], depth=[1], patch_sizes=[7], patch_stride=[4],
        patch_padding=[2], cls_token=[True], mlp_ratio=[1.0], attention_drop_rate=[0.0], drop_rate=[0.0],
        drop_path_rate=[0.0], qkv_bias=[True], qkv_projection_method=["dw_bn"], kernel_qkv=[3], padding_kv=[1],
        stride_kv=[2], padding_q=[1], stride_q=[1])),
         separate("projection_query", "projection_key"), "encoder.stages.0.layers.0.attention.attention",
         {"pixel_values": IMAGE}, scale=(H * D) ** -0.5, masked=False),
    Case("Wq of transformers (CTRL)", lambda: CTRLModel(CTRLConfig(vocab_size=64, n_embd=H * D, n_layer=1, n_head=H,
                                                                   dff=40, n_positions=32,
                                                                   attn_implementation="eager")),
         separate("Wq", "Wk"), "h.0.multi_head_attention"),
    Case("nn.MultiheadAttention", lambda: OwnTorch(nn.MultiheadAttention(H * D, H, batch_first=True)), thirds,
         "attention", X, masked=False),
    Case("to_q of one's own", lambda: Own(Diffusers()), separate("to_q", "to_k"), "attention", X, masked=False),
    Case("Wq of one's own", lambda: Own(Teaching()), separate("Wq", "Wk"), "attention", X),
    Case("convolutions of one's own", lambda: Own(Pixels()), pixels, "attention", MAP, masked=False),
]  # fmt: skip


@contextmanager
def softmax_inputs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tensor]]:
    """What is given to any softmax inside the context, whichever name it is called by."""
    seen: list[Tensor] = []
    with monkeypatch.context() as patches:
        for place in (nn.functional, torch, torch.Tensor):
            original = place.softmax

            def note(x: Tensor, *arguments: object, original: Callable = original, **options: object) -> Tensor:
                seen.append(x.detach().clone())
                return original(x, *arguments, **options)

            patches.setattr(place, "softmax", note)
        yield seen


def read(model: nn.Module, case: Case, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Outputs, tuple[Tensor, ...]]:
    """The layer's logits (B, H, T, S), the outputs of the modules in it, and its cos and sin."""
    layer, outputs, rotary = model.get_submodule(case.layer), {}, []

    def note(name: str, output: Any) -> None:  # returns nothing: what a hook returns takes the output's place
        outputs.setdefault(name, output)

    for name, module in layer.named_modules():
        module.register_forward_hook(lambda _, arguments, output, name=name: note(name, output), always_call=True)
    layer.register_forward_pre_hook(
        lambda module, arguments, options: rotary.append(options.get("position_embeddings")), with_kwargs=True
    )
    with softmax_inputs(monkeypatch) as seen:
        model(**case.inputs)  # with gradients: torch's own layer has another path without
    logits = next(x for x in seen if x.shape[:-2] in ((2, H), (2 * H,)))
    assert logits.dtype == torch.float64
    turn = tuple(part[:, None] for part in rotary[0]) if case.turn is not None else ()
    return logits.reshape(2, H, *logits.shape[-2:]), outputs, turn


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_logit_is_q_a_k(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    bare = case.build().double().eval()
    with torch.no_grad():
        for parameter in bare.parameters():  # norms and biases, too, away from where they start
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    patched = copy.deepcopy(bare)
    patch = patch_attention(patched, block_size=4, layers=[case.layer], example_inputs=case.inputs)
    perturb(patch)
    matrix = patch.layers[case.layer].metric_layer.metric().matrix().detach()
    heads = torch.stack(matrix.chunk(H)).unflatten(-1, (H, -1))[range(H), :, range(H)]  # (H, d, d)
    assert torch.count_nonzero(matrix) == torch.count_nonzero(heads) < heads.numel()
    assert not any(torch.equal(heads[0], other) for other in heads[1:])

    got, _, _ = read(patched, case, monkeypatch)
    plain, outputs, angles = read(bare, case, monkeypatch)
    q, k = (x.detach() for x in case.cut(bare.get_submodule(case.layer), outputs))
    turn = case.turn or (lambda x: x)
    k = turn(k, *angles)

    def product(query: Tensor) -> Tensor:
        return case.scale * turn(query, *angles) @ k.mT

    seen = torch.isfinite(plain) & (plain > -1e3)
    assert bool(seen.all()) is not case.masked
    rest = (plain - product(q)).masked_fill(~seen, 0.0)
    torch.testing.assert_close(rest[0], rest[1], rtol=0.0, atol=1e-9)  # positions alone
    wanted = product(torch.einsum("bhti,hij->bhtj", q, heads)) + rest
    assert (wanted - plain)[seen].abs().max() > 0.1
    torch.testing.assert_close(got[seen], wanted[seen], rtol=1e-9, atol=1e-9)
