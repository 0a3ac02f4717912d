"""What the probe must not mistake and not leave behind in models that round coarsely or rebuild themselves."""

import pytest
import torch
from attention.patching import hidden, perturb
from transformers import BertConfig, BertModel, BigBirdConfig, BigBirdModel

from gssf_plug.attention import patch_attention


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_beside_what_is_larger(dtype: torch.dtype) -> None:
    """A bias of the values drowns much of what the keys do in rounding, yet not all of it."""
    torch.manual_seed(0)
    model = BertModel(BertConfig(vocab_size=50, hidden_size=48, num_hidden_layers=1, num_attention_heads=6)).to(dtype)
    model.encoder.layer[0].attention.self.value.bias.data.fill_(8.0)
    patch = patch_attention(model, block_size=2)
    assert [layer.metric_layer.layout for layer in patch.layers.values()] == ["query"]


def test_parts_that_a_run_replaces_are_put_back() -> None:
    """BigBird gives up sparse attention for good once it sees a short input, such as the probe's."""
    torch.manual_seed(0)
    config = BigBirdConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40, block_size=4,
        num_random_blocks=1, initializer_range=0.3,
    )  # fmt: skip
    model, ids = BigBirdModel(config).eval(), torch.randint(5, 50, (2, 64))
    parts = dict(model.named_modules())
    before = hidden(model, ids)
    patch = patch_attention(model, block_size=2)
    assert all(model.get_submodule(name) is part for name, part in parts.items())
    assert model.attention_type == "block_sparse"
    assert torch.equal(hidden(model, ids), before)
    perturb(patch)
    assert not torch.allclose(hidden(model, ids), before, atol=1e-3)
    patch.remove()
    assert torch.equal(hidden(model, ids), before)
