"""The injected layers hold what tests/contracts/injected_layer.py asks, at every place where a query is reached."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from attention.small_models import IDS, SmallMultihead, small_bert, small_deberta, small_llama, small_qwen
from contracts.injected_layer import HEADS, SIZE, InjectedLayerContract
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from gssf_plug.attention.query_layer import LayerMetric, QueryMetric
from gssf_plug.attention.score_layer import ScoreMetric


def heads(x: Tensor, count: int = HEADS) -> Tensor:
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def times(query: Tensor, matrices: Tensor) -> Tensor:
    """qᵀA, one head after the other."""
    return torch.stack([query[:, h] @ matrices[h] for h in range(HEADS)], dim=1)


def dots(query: Tensor, key: Tensor) -> Tensor:
    return torch.einsum("bhti,bhsi->bhts", query, key) / SIZE**0.5


class OfTransformers(InjectedLayerContract):
    def run(self, model: nn.Module) -> Tensor:
        return model(IDS)[0]

    def break_it(self, owner: nn.Module, layer: LayerMetric) -> None:
        owner._forward_pre_hooks.clear()


class OfBert(OfTransformers):
    culprit = "value"

    def model(self) -> nn.Module:
        model = small_bert()
        model.set_attn_implementation("eager")
        return model

    def logits(self, owner: nn.Module, call: Any, matrices: Tensor) -> Tensor:
        x = call[0][0]
        return dots(times(heads(owner.query(x)), matrices), heads(owner.key(x)))


class OfADecoder(OfTransformers):
    causal = True
    culprit = "o_proj"

    def model(self) -> nn.Module:
        model = small_llama()
        model.set_attn_implementation("eager")
        return model

    def logits(self, owner: nn.Module, call: Any, matrices: Tensor) -> Tensor:
        x, (cosine, sine) = call[1]["hidden_states"], call[1]["position_embeddings"]
        q, k = heads(owner.q_proj(x)), heads(owner.k_proj(x), 2)
        q = self.changed(owner, q, matrices)
        if hasattr(owner, "k_norm"):
            k = owner.k_norm(k)
        q, k = apply_rotary_pos_emb(q, k, cosine, sine)
        q = times(q, matrices) if self.kind is ScoreMetric else q
        return dots(q, k.repeat_interleave(2, dim=1))

    def changed(self, owner: nn.Module, q: Tensor, matrices: Tensor) -> Tensor:
        """The query that is rotated."""
        return q if self.kind is ScoreMetric else times(q, matrices)


class TestBehindAProjection(OfBert):
    kind = QueryMetric

    def break_it(self, owner: nn.Module, layer: LayerMetric) -> None:
        owner.query = nn.Linear(HEADS * SIZE, 3 * HEADS * SIZE)


class TestBeforeARotation(OfADecoder):
    kind = QueryMetric


class TestBehindAQueryNorm(OfADecoder):
    kind = QueryMetric

    def model(self) -> nn.Module:
        model = small_qwen()
        model.set_attn_implementation("eager")
        return model

    def changed(self, owner: nn.Module, q: Tensor, matrices: Tensor) -> Tensor:
        return times(owner.q_norm(q), matrices)


class TestBeforeAQueryNorm(TestBehindAQueryNorm):
    options = {"query_norm": "before"}

    def changed(self, owner: nn.Module, q: Tensor, matrices: Tensor) -> Tensor:
        return owner.q_norm(times(q, matrices))


class TestInAFusedProjectionWithABiasApart(OfTransformers):
    """DeBERTa, without its relative positions: q|k|v head by head, and a bias of the query that the layer adds."""

    kind = QueryMetric
    culprit = "in_proj"

    def model(self) -> nn.Module:
        return small_deberta()

    def run(self, model: nn.Module) -> Tensor:
        return model(IDS, output_attentions=True)[0]

    def logits(self, owner: nn.Module, call: Any, matrices: Tensor) -> Tensor:
        rows = owner.in_proj(call[0][0]).unflatten(-1, (HEADS, 3, SIZE))
        q, k = rows[:, :, :, 0] + owner.q_bias.view(HEADS, SIZE), rows[:, :, :, 1]
        return dots(times(q.transpose(1, 2), matrices), k.transpose(1, 2))


class TestInAWeight(InjectedLayerContract):
    """`nn.MultiheadAttention` hands its weight to a function: no module's output is the query."""

    kind = QueryMetric
    x = torch.randn(2, 5, HEADS * SIZE, generator=torch.Generator().manual_seed(0))
    options = {"example_inputs": {"x": x}}

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        model = SmallMultihead(HEADS * SIZE, HEADS).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.3)
        return model

    def patched(self, model: nn.Module, **options: Any) -> Any:
        dtype = next(model.parameters()).dtype
        return super().patched(model, **{"example_inputs": {"x": self.x.to(dtype)}, **options})

    def run(self, model: nn.Module) -> Tensor:
        return model(self.x.to(next(model.parameters()).dtype))

    def logits(self, owner: nn.Module, call: Any, matrices: Tensor) -> Tensor:
        rows = nn.functional.linear(call[0][0], owner.in_proj_weight, owner.in_proj_bias)
        q, k, _ = (heads(part) for part in rows.chunk(3, dim=-1))
        return dots(times(q, matrices), k)

    def break_it(self, owner: nn.Module, layer: LayerMetric) -> None:
        owner._forward_pre_hooks.clear()

    @contextmanager
    def interrupted(self, owner: nn.Module) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(nn.functional, "multi_head_attention_forward", self.interrupt)
            yield


class InTheScore:
    kind = ScoreMetric
    options = {"sites": "score"}

    def break_it(self, owner: nn.Module, layer: LayerMetric) -> None:
        owner.config = owner.config.base  # `set_attn_implementation` of old, and tools that rebuild layers


class TestInTheScoreOfAnEncoder(InTheScore, OfBert):
    pass


class TestInTheScoreBehindARotation(InTheScore, OfADecoder):
    pass
