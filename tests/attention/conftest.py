"""Fixtures of the attention tests: the small models, and a saved adapter of one."""

from pathlib import Path

import pytest
import torch
from attention.patching import perturb
from attention.small_models import IDS, small_bert, small_llama, small_qwen
from transformers import BertModel, LlamaForCausalLM, Qwen3Model

from gssf_plug.attention import patch_attention


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


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The folder of an adapter of the small BERT, away from neutral."""
    patch = patch_attention(small_bert(), block_size=4)
    torch.manual_seed(1)
    perturb(patch)
    patch.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"
