"""Rows as two digits of int8: sums beside exact ones, and bounds that no canonical score breaks."""

import pytest
import torch
from metric.exact.test_fast_rows import KINDS, ROWS, stood_for
from metric.scored import FEATURES, canonical, perturbed, sum_exactly

from gssf_plug.metric.exact.canonical import CanonicalQueries, canonical_queries
from gssf_plug.metric.exact.fast_rows import fast_rows, given_rows, pair_rows
from gssf_plug.metric.exact.int8 import two_digits as module
from gssf_plug.metric.exact.int8.two_digits import DIGIT, DigitPart, digit_queries, digit_rows

EXACT = torch.float64


def both_digits(rows, steps):
    """What the digits stand for, and what the lower one does."""
    left, right = rows.both.chunk(2, dim=1)
    low = left if torch.equal(right, rows.high) else right
    return steps * (rows.high.to(EXACT) + low.to(EXACT) / DIGIT), steps * low.to(EXACT) / DIGIT


def lengths(rows):
    return torch.linalg.vector_norm(rows, dim=1)


@pytest.mark.parametrize("at_once", [524_288, 700])
@pytest.mark.parametrize("kind", KINDS)
def test_no_row_is_farther_or_longer_than_said(kind, at_once, monkeypatch):
    monkeypatch.setattr(module, "ENTRIES_AT_ONCE", at_once)  # on one thread, and on several
    features = KINDS[kind]()
    right = stood_for(features, True, 0)
    for items in (given_rows(features, True), fast_rows(features, True, torch.float32)):
        rows = digit_rows(items)
        stands, low = both_digits(rows, rows.step)
        assert float(lengths(stands - right).max()) <= rows.rest
        assert float(lengths(low).max()) <= rows.low
        assert float(lengths(right).max()) <= rows.norm
        assert torch.equal(rows.part(slice(3, 9)).both, rows.both[3:9])


@pytest.mark.parametrize("kind", FEATURES)
@pytest.mark.parametrize("metric", [None, perturbed()])
def test_no_query_is_farther_or_longer_than_said(metric, kind):
    queries = canonical_queries(metric, FEATURES[kind](70))
    rows = digit_queries(queries)
    exact = queries.folded * queries.factors[:, None]
    stands, low = both_digits(rows, rows.steps[:, None])
    assert bool((lengths(stands - exact) <= rows.rests).all())
    assert bool((lengths(low) <= rows.lows).all())
    assert bool((lengths(exact) + lengths(stands - exact) <= rows.norms * (1 + 1e-12)).all())
    assert torch.equal(rows.part(slice(3, 9)).norms, rows.norms[3:9])


@pytest.mark.parametrize("at_once", [2048, 96])
@pytest.mark.parametrize("kind", FEATURES)
@pytest.mark.parametrize("metric", [None, perturbed()])
def test_canonical_scores_lie_within_the_bounds(metric, kind, at_once, monkeypatch):
    sum_exactly(monkeypatch)
    monkeypatch.setattr(module, "ITEMS_AT_ONCE", at_once)
    features, gallery = FEATURES[kind](40), FEATURES[kind](ROWS)
    queries, items = digit_queries(canonical_queries(metric, features)), digit_rows(given_rows(gallery, True))
    assert queries.fits(items)
    part, right = DigitPart(queries, items), canonical(metric, features, gallery)
    sums = DIGIT * (queries.high.to(EXACT) @ items.high.to(EXACT).T) + queries.both.to(EXACT) @ items.both.to(EXACT).T
    assert torch.equal(part.fast.to(EXACT), sums)
    around = part.around(right, right)
    assert bool(((around.low <= part.fast) & (part.fast <= around.high)).all())
    rows, columns = torch.cartesian_prod(torch.arange(40), torch.arange(ROWS)).T
    between = part.between(rows, part.fast[rows, columns])
    assert bool(((between.low <= right[rows, columns]) & (right[rows, columns] <= between.high)).all())
    for column in (0, 17, ROWS - 1):  # one value, whichever query is compared with it
        value = right[:, column].median()
        low, high = part.around_items(value[None], value[None])
        assert bool((right[part.fast < low] < value).all())
        assert bool((right[part.fast > high] > value).all())


def test_a_bound_that_asks_for_nothing_stays_infinite():
    part = DigitPart(digit_queries(canonical_queries(None, torch.eye(4))), digit_rows(given_rows(torch.eye(4), True)))
    nothing = torch.full((4, 1), torch.inf, dtype=EXACT)
    assert part.around(nothing, nothing).low.isinf().all()


def test_the_bound_is_narrow():
    """Less than a fifth of a thousandth to both sides, where scores of such rows spread by forty."""
    features = torch.randn(1000, 512)
    queries, items = digit_queries(canonical_queries(None, features)), digit_rows(pair_rows(features, True))
    part = DigitPart(queries.part(slice(4)), items)
    open_ones = part.between(torch.arange(4), torch.zeros(4, dtype=torch.int32))
    assert bool((open_ones.high - open_ones.low < 4e-4).all())


@pytest.mark.parametrize(("channels", "fits"), [(512, True), (530, False)])
def test_sums_that_leave_32_bits_are_not_made(channels, fits, monkeypatch):
    """Codes of ±1 are the worst case: every entry is the largest."""
    sum_exactly(monkeypatch)
    codes = torch.randint(2, (70, channels)) * 2.0 - 1
    codes[1] = -codes[0]
    queries, items = digit_queries(canonical_queries(None, codes)), digit_rows(given_rows(codes, True))
    assert queries.fits(items) == fits
    assert queries.part(slice(0)).fits(items)
    if fits:
        sums = queries.sums(items)
        assert sums[0, 0] == -sums[0, 1] == DIGIT * 127**2 * channels


def test_folded_queries_out_of_the_ordinary_range_have_no_digits():
    rows = torch.randn(5, 8, dtype=EXACT)
    queries = CanonicalQueries(rows, torch.full((5,), 60), None)
    assert digit_queries(queries) is None
    assert digit_queries(CanonicalQueries(rows, torch.zeros(5, dtype=torch.long), None)) is not None


def test_empty_sides():
    items, queries = (
        digit_rows(given_rows(torch.randn(0, 8), True)),
        digit_queries(canonical_queries(None, torch.eye(8))),
    )
    assert DigitPart(queries, items).fast.shape == (8, 0)
    assert digit_queries(canonical_queries(None, torch.randn(0, 8))).part(slice(0)).high.shape == (0, 8)
