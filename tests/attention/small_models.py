"""Small models of three kinds that most attention tests patch, with weights far from zero."""

import torch
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3Model

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
