"""Sigmoid: the contract of losses, SigLIP's loss as a special case, its own scale and bias."""

import math

import pytest
import torch
from contracts.loss import LossContract
from transformers import SiglipConfig, SiglipModel

from gssf_plug.losses import Sigmoid


class TestSigmoid(LossContract):
    def make(self):
        return Sigmoid()

    def reference(self, scores, relevance, forbidden):
        total = 0.0
        for row, relevant, hidden in zip(scores, relevance, forbidden, strict=True):
            for s, r, h in zip(row, relevant, hidden, strict=True):
                total += 0.0 if h else -math.log(1 / (1 + math.exp(-s if r else s)))
        return total / len(scores)

    @pytest.mark.parametrize("positive", [True, False])
    def test_one_kind_of_pair_alone_is_finite(self, positive):
        """Every pair is a question of its own, so negatives alone teach something too."""
        scores = self.batch()[0].requires_grad_()
        loss = self.make().double()(scores, torch.full(scores.shape, positive))
        loss.backward()
        assert loss > 0
        assert (scores.grad < 0).all() if positive else (scores.grad > 0).all()


def test_is_the_loss_of_siglip():
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text, vision = (
        {**sizes, "vocab_size": 20, "max_position_embeddings": 8},
        {**sizes, "image_size": 8, "patch_size": 4},
    )
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).eval()
    torch.nn.init.constant_(model.logit_scale, 1.0)
    torch.nn.init.constant_(model.logit_bias, -2.0)
    output = model(torch.randint(0, 20, (5, 8)), torch.randn(5, 3, 8, 8), return_loss=True)
    ours = Sigmoid()(output.logits_per_image, torch.eye(5, dtype=torch.bool))
    torch.testing.assert_close(ours, output.loss)


def test_scale_and_bias_are_learned():
    loss, scores = Sigmoid(learned=True), torch.rand(4, 4)
    relevance = torch.eye(4, dtype=torch.bool)
    torch.testing.assert_close(loss(scores, relevance), Sigmoid()(10 * scores - 10, relevance))
    loss(scores, relevance).backward()
    assert [name for name, value in loss.named_parameters() if value.grad.abs() > 0] == ["bias", "scale.log_scale"]
    assert not list(Sigmoid().parameters())
