"""Canonical scores: one number for two rows, whatever stands beside them, against float64 and exact fractions."""

import copy
import math
from fractions import Fraction

import pytest
import torch
from metric.scored import DIM, KINDS, NARROW, OPTIONS, canonical, perturbed

from gssf_plug import GSSFMetric
from gssf_plug.metric.exact.canonical import canonical_queries, canonical_scores, fold_exactly, folds_nothing


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_is_what_python_computes_number_by_number(dtype):
    queries, gallery = torch.randn(8, 5, dtype=dtype), torch.randn(600, 5, dtype=dtype)
    found = canonical(None, queries, gallery).tolist()
    sides = [[_scaled(row) for row in side.tolist()] for side in (queries, gallery)]
    for row, query in zip(found, sides[0], strict=True):
        for score, item in zip(row, sides[1], strict=True):
            dot = math.fsum(a * b for a, b in zip(query, item, strict=True))
            norms = math.fsum(a * a for a in query) * math.fsum(b * b for b in item)
            assert score == math.copysign(math.sqrt(dot * dot / norms), dot)


def _scaled(row):
    exponent = math.frexp(max(map(abs, row)))[1]
    return [math.ldexp(entry, -exponent) for entry in row]


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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [None, {}, {"normalize": False}])
def test_a_canonical_score_is_that_of_its_pair_alone(kind, options):
    """Also where sums of short numbers are exact by themselves, and so are made by a product of all pairs."""
    metric = None if options is None else perturbed(NARROW, **options)
    features, gallery = KINDS[kind](5), KINDS[kind](30)
    queries = canonical_queries(metric, features)
    rows, columns = torch.randint(5, (2000,)), torch.randint(30, (2000,))
    found = canonical_scores(queries, rows, gallery, columns)
    alone = {
        (row, column): float(canonical_scores(queries, torch.tensor([row]), gallery, torch.tensor([column])))
        for row, column in set(zip(rows.tolist(), columns.tolist(), strict=True))
    }
    assert found.tolist() == [alone[pair] for pair in zip(rows.tolist(), columns.tolist(), strict=True)]


@pytest.mark.parametrize("constraint", [None, "symmetric", "psd"])
def test_an_untrained_metric_folds_nothing(constraint):
    metric = GSSFMetric(DIM, block_size=4, constraint=constraint, grouping=torch.randperm(DIM))
    features = torch.randn(7, DIM)
    own, plain = canonical_queries(metric, features), canonical_queries(None, features)
    assert folds_nothing(metric)
    assert folds_nothing(None)
    assert torch.equal(own.folded, plain.folded)
    assert torch.equal(own.factors, plain.factors)
    assert torch.equal(fold_exactly(metric, plain.folded), plain.folded)
    with torch.no_grad():  # the sum of its terms is still neutral, and folds
        metric.structures["diagonal"].weight.add_(1)
        metric.structures["block_diagonal"].weight.sub_(torch.eye(4))
    assert not folds_nothing(metric)


def test_some_of_the_queries():
    queries = canonical_queries(None, torch.randn(9, DIM))
    some = queries.part(torch.tensor([4, 2]))
    assert torch.equal(some.folded, queries.folded[[4, 2]])
    assert torch.equal(some.factors, queries.factors[[4, 2]])
    raw = canonical_queries(GSSFMetric(DIM, normalize=False), torch.ones(3, DIM)).part(slice(1))
    assert raw.exponents.tolist() == [1]
    assert raw.squares is None
