"""A deterministic encoder of texts for the frameworks' wrappers: unit vectors from the letters, queries prefixed."""

import torch

from gssf_plug import GSSFMetric

DIM = 16
TEXTS = ["a snowman in winter", "birthday cake", "a crying cat", "green apple", "old steam train", "rain over the sea"]


def vector(text: str) -> list[float]:
    """The same for the same text."""
    generator = torch.Generator().manual_seed(sum(ord(letter) * 31**at % 100_003 for at, letter in enumerate(text)))
    return torch.randn(DIM, generator=generator).tolist()


def trained() -> GSSFMetric:
    metric = GSSFMetric(DIM, block_size=4)
    with torch.no_grad():
        for parameter in metric.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
    return metric


def scores(metric: GSSFMetric, query: str, texts: list[str] = TEXTS) -> torch.Tensor:
    """The metric's scores of one query among the texts."""
    with torch.no_grad():
        return metric(torch.tensor([vector(query)]), torch.tensor([vector(text) for text in texts]))[0]
