"""Canonical scores, the fast product, and the bound between them."""

import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import cached_property

import pytest
import torch
from metric.scored import DIM, FEATURES, OPTIONS, all_pairs, canonical, perturbed

from gssf_plug import GSSFMetric
from gssf_plug.metric import exact_scores
from gssf_plug.metric.exact.canonical import canonical_queries
from gssf_plug.metric.exact_scores import CanonicalScores, ExactScores


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


SHORT = {
    "signs": lambda n: torch.randn(n, DIM).sign(),
    "one bit": lambda n: (torch.randn(n, DIM) > 0.8).float(),  # some of them zeros alone
    "whole": lambda n: (3 * torch.randn(n, DIM)).round().half(),
    "scaled": lambda n: (torch.randn(n, DIM) > 1).double().ldexp(torch.randint(-500, 500, (n, 1)).double()),
    "copies": lambda n: torch.randn(3, DIM)[torch.randint(3, (n,))],
}


def decided(x, y):
    """Order of cosines, exactly: the square with its sign."""
    x, y = ([Fraction(value) for value in row.tolist()] for row in (x, y))
    product, squares = sum(a * b for a, b in zip(x, y, strict=True)), sum(a * a for a in x) * sum(b * b for b in y)
    return product * abs(product) / squares if squares else Fraction(0)


@pytest.mark.parametrize("kind", SHORT)
@pytest.mark.parametrize("terms", [None, {}, {"normalize": False}])
def test_a_table_of_canonical_scores_is_that_of_every_pair(kind, terms, monkeypatch):
    monkeypatch.setattr(exact_scores, "MANY_PAIRS", 0)
    monkeypatch.setattr(exact_scores, "FEW_DIFFERENT", 8)
    metric = None if terms is None else GSSFMetric(DIM, block_size=4, **terms)
    queries, gallery = SHORT[kind](12), SHORT[kind](40)
    if terms and kind == "scaled":
        queries, gallery = queries.sign(), gallery.sign()  # their product overflows
    queries[1] = gallery[2] = 0
    scores, right = CanonicalScores(metric, queries, gallery), canonical(metric, queries, gallery)
    assert torch.equal(scores.pairs(*all_pairs(12, 40)).view(12, 40), right)
    for rows, columns in ((slice(0, 12), slice(0, 40)), (slice(3, 5), slice(7, 30))):
        some = canonical_queries(metric, queries[rows])
        assert scores.has_table(some)
        table = scores.table(some, torch.arange(12)[rows], columns)
        assert torch.equal(table, right[rows, columns])
        assert not table[table == 0].signbit().any()
    if terms is None and kind != "copies":  # whose rows differ by less than a score tells
        for row in (0, 1, 7):
            exact = [decided(queries[row], item) for item in gallery]
            order = sorted(range(40), key=lambda item: exact[item])
            for a, b in zip(order, order[1:], strict=False):
                assert (exact[a] < exact[b]) == bool(right[row, a] < right[row, b])


def test_no_table_of_features_of_many_values():
    features = torch.randn(300, DIM)
    scores, some = CanonicalScores(None, features, features), canonical_queries(None, features)
    assert not scores.has_table(some)
    signs = CanonicalScores(perturbed(), features.sign(), features.sign())
    assert not signs.has_table(canonical_queries(perturbed(), features.sign()))  # whose weights have many bits
    assert not CanonicalScores(None, features.sign(), features).has_table(canonical_queries(None, features.sign()))


def test_a_table_of_as_many_rows_as_differ():
    features = torch.randn(4, DIM).repeat(100, 1)
    scores = CanonicalScores(None, features, features[:-1])
    assert scores.has_table(canonical_queries(None, features))
    assert scores._different.scores.shape == (4, 4)


class _WithoutLock:
    """`cached_property` as it is since Python 3.12; that of 3.11 lets one thread in after the other."""

    def __init__(self, name, made_by):
        self.name, self.made_by = name, made_by

    def __get__(self, instance, owner=None):
        value = vars(instance)[self.name] = self.made_by(instance)
        return value


def test_threads_that_ask_at_once_whether_there_is_a_table_look_one_after_the_other(monkeypatch):
    """As threads that count do."""
    for name, kept in vars(CanonicalScores).copy().items():
        if isinstance(kept, cached_property):
            monkeypatch.setattr(CanonicalScores, name, _WithoutLock(name, kept.func))
    features = torch.randint(-2, 3, (40, DIM)).float()
    scores, some = CanonicalScores(None, features, features), canonical_queries(None, features[:5])
    make, made = exact_scores.canonical_items, []

    def slowly(rows, normalize):
        made.append(len(rows))
        time.sleep(0.05)
        return make(rows, normalize)

    monkeypatch.setattr(exact_scores, "canonical_items", slowly)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(scores.has_table, [some] * 4)) == [True] * 4
    assert made == [1, 40]
