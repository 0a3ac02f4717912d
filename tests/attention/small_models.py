"""Small models of a few kinds that most attention tests patch, with weights far from zero."""

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    DebertaConfig,
    DebertaModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3Model,
)

IDS = torch.tensor([[5, 9, 23, 41, 7, 12, 33], [8, 8, 30, 2, 19, 60, 11]])


def small_bert() -> BertModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40,
        initializer_range=0.3,
    )  # fmt: skip
    return BertModel(config, add_pooling_layer=False).eval()


def small_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=40, initializer_range=0.2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def small_qwen() -> Qwen3Model:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        intermediate_size=40, initializer_range=0.2,
    )  # fmt: skip
    return Qwen3Model(config).eval()


def small_deberta() -> DebertaModel:
    """Without relative positions: its plain scores, a fused projection, and a bias of the query kept apart."""
    torch.manual_seed(0)
    config = DebertaConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40,
        initializer_range=0.3, relative_attention=False, pos_att_type=[],
    )  # fmt: skip
    model = DebertaModel(config).eval()
    with torch.no_grad():  # biases start at zero, and a bias forgotten would not show
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.3)
    return model


class SmallMultihead(nn.Module):
    """torch's own attention over its input, with the weights of each head."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(x, x, x, need_weights=True, average_attn_weights=False)[0]


class PlainAttention(nn.Module):
    """Two heads of four channels; `scores` says what takes the place of the dot product."""

    num_heads = 2

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(8, 8) for _ in range(3))

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return q @ k.mT

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (2, 4)).transpose(1, 2) for f in (self.q_proj, self.k_proj, self.v_proj))
        return (self.scores(q, k).softmax(-1) @ v).transpose(1, 2).flatten(-2)
