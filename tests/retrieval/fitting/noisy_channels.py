"""Queries and documents that agree in some channels and carry noise in the others: a metric has something to learn."""

import torch
from torch import Tensor


def noisy_channels(
    queries: int = 500, documents: int = 200, dim: int = 24, *, noise: float = 1.5, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Features of both sides, and pairs (queries, 2): query i belongs to document i modulo `documents`."""
    generator = torch.Generator().manual_seed(seed)
    told = torch.arange(dim) % 3 == 0
    items = torch.randn(documents, dim, generator=generator)
    answers = torch.arange(queries) % documents
    clean = items[answers] + 0.3 * torch.randn(queries, dim, generator=generator)
    asked = torch.where(told, clean, noise * torch.randn(queries, dim, generator=generator))
    return asked, items, torch.stack([torch.arange(queries), answers], dim=1)
