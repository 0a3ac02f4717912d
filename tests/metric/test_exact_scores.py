"""Canonical scores, the fast product, and the bound between them."""

import copy
from fractions import Fraction

import pytest
import torch

from gssf_plug import GSSFMetric
from gssf_plug.metric.exact.canonical import canonical_queries, canonical_scores
from gssf_plug.metric.exact_scores import ExactScores

DIM = 32
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


def perturbed(**options):
    metric = GSSFMetric(DIM, **options)
    with torch.no_grad():
        for parameter in metric.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return metric


def all_pairs(n, m):
    return torch.arange(n).repeat_interleave(m), torch.arange(m).repeat(n)


def canonical(metric, queries, gallery):
    pairs = all_pairs(len(queries), len(gallery))
    return canonical_scores(canonical_queries(metric, queries), pairs[0], gallery, pairs[1]).view(len(queries), -1)


@pytest.mark.parametrize("options", OPTIONS)
def test_equals_the_metric_in_float64(options):
    metric = perturbed(**OPTIONS[options])
    queries, gallery = torch.randn(9, DIM), torch.randn(12, DIM)
    right = copy.deepcopy(metric).double()(queries.double(), gallery.double()).detach()
    torch.testing.assert_close(canonical(metric, queries, gallery), right, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("options", OPTIONS)
def test_depends_on_the_two_rows_alone(options):
    metric = perturbed(**OPTIONS[options])
    queries, gallery = torch.randn(9, DIM), torch.randn(12, DIM)
    whole = canonical(metric, queries, gallery)
    single = [canonical(metric, query[None], item[None]) for query in queries for item in gallery]
    assert torch.equal(torch.cat(single).view(whole.shape), whole)
    assert torch.equal(canonical(metric, queries.double(), gallery.double()), whole)
    assert torch.equal(canonical(metric, queries, gallery.half().float()), canonical(metric, queries, gallery.half()))
    threads = torch.get_num_threads()
    torch.set_num_threads(1 + threads % 2)
    assert torch.equal(canonical(metric, queries, gallery), whole)
    torch.set_num_threads(threads)


def test_no_order_of_channels_shows():
    queries, gallery, order = torch.randn(9, DIM), torch.randn(12, DIM), torch.randperm(DIM)
    assert torch.equal(canonical(None, queries[:, order], gallery[:, order]), canonical(None, queries, gallery))


def test_whole_numbers_tie_where_mathematics_says_so():
    queries, gallery = torch.randint(-2, 3, (30, 4)).float(), torch.randint(-3, 4, (60, 4)).float()
    scores = canonical(None, queries, gallery)
    for query, row in zip(queries.long().tolist(), scores.tolist(), strict=True):
        seen = {}
        for item, score in zip(gallery.long().tolist(), row, strict=True):
            dot, square = sum(a * b for a, b in zip(query, item, strict=True)), sum(b * b for b in item)
            seen.setdefault(Fraction(dot * abs(dot), square) if square else Fraction(0), set()).add(score)
        assert all(len(scores) == 1 for scores in seen.values())
        assert len({score for scores in seen.values() for score in scores}) == len(seen)


def test_rows_whose_squares_leave_float32():
    x = torch.randn(6, DIM)
    exact = canonical(None, x, x)
    assert (exact.diagonal() - 1).abs().max() < 1e-15
    assert torch.equal(canonical(None, x * 2.0**100, x * 2.0**-100), exact)
    assert torch.equal(canonical(None, x.double() * 2.0**900, x.double() * 2.0**-900), exact)
    assert canonical(None, torch.zeros(1, DIM), x).eq(0).all()
    assert not canonical(None, -torch.zeros(1, DIM), x).signbit().any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", FEATURES)
def test_the_bound_holds(kind, options, dtype):
    metric, queries, gallery = perturbed(**OPTIONS[options]), FEATURES[kind](11), FEATURES[kind](40)
    part = ExactScores(metric, gallery, dtype=dtype).chunk(queries)
    fast, right = part.product(), canonical(metric, queries, gallery)
    assert torch.equal(part.canonical(*all_pairs(11, 40)).view(11, 40), right)
    assert fast.dtype == dtype
    for bounds in (part.around(right), part.around_items(right)):
        assert ((bounds.low <= fast) & (fast <= bounds.high)).all()
    for column in (0, 17):  # what is said to be above or below a value is so
        low, high = part.around(right[:, column : column + 1])
        assert (right > right[:, column : column + 1])[fast > high].all()
        assert (right < right[:, column : column + 1])[fast < low].all()


@pytest.mark.parametrize(("dtype", "most"), [(torch.bfloat16, 0.15), (torch.float32, 1e-3), (torch.float64, 1e-9)])
def test_the_bound_decides_most_pairs(dtype, most):
    metric, queries, gallery = perturbed(block_size=4), torch.randn(50, DIM), torch.randn(500, DIM)
    part = ExactScores(metric, gallery, dtype=dtype).chunk(queries)
    median = part.canonical(torch.arange(50), torch.arange(50))[:, None]
    low, high = part.around(median)
    fast = part.product()
    assert ((low <= fast) & (fast <= high)).double().mean() - 1 / 500 <= most
    assert torch.equal(ExactScores(metric, gallery, dtype=dtype).finer().chunk(queries).canonical(*all_pairs(2, 3)),
                       part.canonical(*all_pairs(2, 3)))  # fmt: skip


def test_a_lower_precision_of_float32_products_widens_the_bound():
    queries, gallery = torch.randn(5, DIM), torch.randn(9, DIM)
    part = ExactScores(None, gallery, dtype=torch.float32).chunk(queries)
    before = part.fast.margins(part.items)
    torch.set_float32_matmul_precision("medium")
    try:
        assert (part.fast.margins(part.items) > 100 * before).all()
    finally:
        torch.set_float32_matmul_precision("highest")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert part.product().dtype == torch.float32
