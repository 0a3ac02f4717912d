"""Decoders whose first layer attends to zeros before training (DETR's kin): proven on the layer alone."""

import pytest
import torch
import transformers
from attention.patching import perturb
from torch import nn

from gssf_plug.attention import patch_attention

BACKBONE = {
    "model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic",
    "out_features": ["stage2"],
}  # fmt: skip
SIZES = {
    "use_timm_backbone": False, "backbone": None, "use_pretrained_backbone": False, "backbone_config": BACKBONE,
    "d_model": 24, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 3,
    "decoder_attention_heads": 3, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "num_queries": 5,
}  # fmt: skip


@pytest.mark.parametrize("name", ["ConditionalDetr", "TableTransformer"])
def test_zeros_in_the_first_decoder_layer(name: str) -> None:
    model_class = getattr(transformers, f"{name}ForObjectDetection")
    model = model_class(model_class.config_class(**SIZES)).eval()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.2)
    pixels = torch.randn(2, 3, 64, 64)
    before = model(pixels).last_hidden_state
    patch = patch_attention(model, block_size=2)
    assert not patch.left_alone
    assert len(patch.layers) == 6  # two in the encoder, two and two in the decoder
    assert torch.equal(model(pixels).last_hidden_state, before)
    perturb(patch)
    patched = model(pixels).last_hidden_state
    assert not torch.equal(patched, before)
    patch.merge()
    torch.testing.assert_close(model(pixels).last_hidden_state, patched, rtol=1e-4, atol=1e-5)
