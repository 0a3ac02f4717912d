"""Metrics and features that are hard to rank: what tests of the search share with those of its parts."""

import torch

from gssf_plug import GSSFMetric
from gssf_plug.metric.exact.canonical import canonical_queries, canonical_scores
from gssf_plug.metric.exact.int8.whole_numbers import multiplies_int8

DIM, NARROW = 32, 16  # channels of FEATURES and of KINDS


OPTIONS = {
    "both": {"block_size": 4},
    "dense": {"terms": ("dense",)},
    "diagonal": {"terms": ("diagonal",)},
    "psd": {"block_size": 8, "constraint": "psd"},
    "symmetric, grouped": {"block_size": 8, "constraint": "symmetric", "grouping": torch.arange(DIM).flip(0)},
    "raw": {"block_size": 4, "normalize": False},
    "adjacency": {"adjacency": torch.eye(DIM, dtype=torch.bool).roll(1, 0) | torch.eye(DIM, dtype=torch.bool)},
}


FEATURES = {
    "random": lambda n: torch.randn(n, DIM),
    "half": lambda n: torch.randn(n, DIM).half(),
    "bfloat16": lambda n: torch.randn(n, DIM).bfloat16(),
    "double": lambda n: torch.randn(n, DIM, dtype=torch.float64),
    "large": lambda n: 1e30 * torch.randn(n, DIM),
    "subnormal": lambda n: 1e-42 * torch.randn(n, DIM),
    "uneven": lambda n: torch.randn(n, DIM) * 10.0 ** torch.randint(-12, 12, (n, 1)),
    "spiked": lambda n: torch.randn(n, DIM) * 10.0 ** torch.randint(-8, 8, (n, DIM)),
    "alike": lambda n: torch.ones(n, DIM) + 1e-6 * torch.randn(n, DIM),
    "signs": lambda n: torch.randn(n, DIM).sign(),
}


def perturbed(dim=DIM, **options):
    metric = GSSFMetric(dim, **options)
    with torch.no_grad():
        for parameter in metric.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return metric


def all_pairs(n, m):
    return torch.arange(n).repeat_interleave(m), torch.arange(m).repeat(n)


def canonical(metric, queries, gallery):
    """Canonical scores of all pairs."""
    pairs = all_pairs(len(queries), len(gallery))
    return canonical_scores(canonical_queries(metric, queries), pairs[0], gallery, pairs[1]).view(len(queries), -1)


def ranked(scores, k, dtype):
    """Each row by falling score, then rising index; padded."""
    values, order = scores.sort(dim=1, descending=True, stable=True)
    missing = (0, max(0, k - scores.shape[1]))
    order = torch.nn.functional.pad(order.masked_fill(values == float("-inf"), -1), missing, value=-1)
    return torch.nn.functional.pad(values, missing, value=float("-inf"))[:, :k].to(dtype), order[:, :k]


def sum_exactly(monkeypatch):
    """Sums of int8 as processors with instructions for them make them, on this one too."""
    if not multiplies_int8():
        monkeypatch.setattr(torch, "_int_mm", lambda a, b, out=None: torch.mm(a.int(), b.int(), out=out))


def signs(n):
    return torch.randn(n, NARROW).sign()


def duplicates(n):
    return torch.randn(11, NARROW)[torch.randint(11, (n,))]


KINDS = {
    "random": lambda n: torch.randn(n, NARROW),
    "shared direction": lambda n: torch.randn(n, NARROW) + 3,
    "half": lambda n: torch.randn(n, NARROW).half(),
    "signs": signs,
    "duplicates": duplicates,
    "near duplicates": lambda n: duplicates(n) * (1 + 2.0**-23 * torch.randint(2, (n, NARROW))),
    "scaled duplicates": lambda n: duplicates(n) * 2.0 ** torch.randint(-3, 4, (n, 1)),
    "quantised": lambda n: torch.randint(-2, 3, (n, NARROW)).float() / 4,
    "ternary with signed zeros": lambda n: torch.tensor([0.0, -0.0, 1.0, -1.0])[torch.randint(4, (n, NARROW))],
    "subnormal": lambda n: torch.randint(-3, 4, (n, NARROW)) * 2.0**-149,
    "some subnormal": lambda n: signs(n) * torch.tensor([1.0, 2.0**-140])[torch.randint(2, (n, NARROW))],
    "all equal": lambda n: torch.full((n, NARROW), 0.3),
    "hardly different": lambda n: torch.ones(n, NARROW) + 1e-7 * torch.randn(n, NARROW),
    "some zero rows": lambda n: torch.randn(n, NARROW) * (torch.rand(n, 1) < 0.7),
    "huge": lambda n: 1e38 * torch.rand(n, NARROW),
    "heavy tails": lambda n: torch.randn(n, NARROW) / torch.rand(n, NARROW).clamp_min(1e-6),
    "one huge channel": lambda n: torch.randn(n, NARROW) * torch.tensor([1e4] + [1.0] * (NARROW - 1)),
    "rising": lambda n: torch.randn(1, NARROW) + torch.linspace(3, 0, n)[:, None] * torch.randn(n, NARROW),
}
