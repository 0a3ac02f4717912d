"""Tiny real models for the tests of distillation, and their batches."""

import torch
from torch import nn
from transformers import BertConfig, BertModel, ViTConfig, ViTModel

__all__ = ["TinyCNN", "bert", "images", "text", "vit"]


def bert(width=16, layers=2, seed=0, **options):
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=50,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=2 * width,
        max_position_embeddings=40,
        **options,
    )
    return BertModel(config, add_pooling_layer=False)


def vit(width=16, layers=2, patch=4, seed=0):
    torch.manual_seed(seed)
    config = ViTConfig(
        image_size=16,
        patch_size=patch,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=2 * width,
    )
    return ViTModel(config, add_pooling_layer=False)


class TinyCNN(nn.Module):
    """Two stages, 16×16 -> 8×8 -> 4×4, with batch normalisation."""

    def __init__(self, width=6):
        super().__init__()
        stage = lambda a, b: nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU())  # noqa: E731
        self.stages = nn.ModuleList([stage(3, width), stage(width, 2 * width)])

    def forward(self, pixel_values):
        for stage in self.stages:
            pixel_values = stage(pixel_values)
        return pixel_values.mean((2, 3))


def text(count=6, length=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(length) < torch.randint(2, length + 1, (count, 1), generator=generator)
    mask[0] = True
    ids = torch.randint(1, 50, (count, length), generator=generator) * mask
    return {"input_ids": ids, "attention_mask": mask.long()}


def images(count=6, size=16, seed=0):
    return {"pixel_values": torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))}
