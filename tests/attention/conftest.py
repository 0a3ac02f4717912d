"""Fixtures of the attention tests: the small models."""

import pytest
import torch
from attention.small_models import IDS, small_bert, small_llama, small_qwen
from transformers import BertModel, LlamaForCausalLM, Qwen3Model


@pytest.fixture
def bert() -> BertModel:
    return small_bert()


@pytest.fixture
def llama() -> LlamaForCausalLM:
    return small_llama()


@pytest.fixture
def qwen() -> Qwen3Model:
    return small_qwen()


@pytest.fixture
def ids() -> torch.Tensor:
    return IDS
