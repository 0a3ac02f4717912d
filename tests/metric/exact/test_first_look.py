"""What looks first: every dtype's scores within their bound, and int8 only where it leaves little open."""

import pytest
import torch
from metric.scored import KINDS, NARROW, all_pairs, canonical, perturbed, sum_exactly

from gssf_plug.metric import topk
from gssf_plug.metric.exact import first_look
from gssf_plug.metric.exact.canonical import canonical_queries
from gssf_plug.metric.exact.fast_rows import given_rows
from gssf_plug.metric.exact.fast_scores import fast_queries
from gssf_plug.metric.exact.first_look import FirstLook


@pytest.fixture(autouse=True)
def int8(monkeypatch):
    """On this machine, whatever it has: sums of int8 that are exact."""
    monkeypatch.setattr(first_look, "short_dtypes", lambda device: (torch.bfloat16, torch.int8))
    sum_exactly(monkeypatch)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [None, {}, {"normalize": False}])
def test_canonical_scores_lie_within_the_bounds_of_every_look(kind, options):
    if kind == "huge" and options is not None:
        return  # their product leaves float32, or is that of "random"
    metric = None if options is None else perturbed(NARROW, block_size=4, **options)
    features, gallery = KINDS[kind](80), KINDS[kind](200)
    queries = canonical_queries(metric, features)
    right = canonical(metric, features, gallery)
    items = given_rows(gallery, metric is None or metric.normalize)
    for dtype in (torch.int8, torch.bfloat16, torch.float32):
        fast, short = fast_queries(queries, dtype), items.to(dtype)
        scores = fast.product(short)
        low, high = fast.between(scores, fast.margins(short)[:, None], short)
        assert bool(((low <= right) & (right <= high)).all()), dtype
        least = right.sort(dim=1).values[:, 150]
        raised, alike = fast.raised(short)
        for bounds, of in ((scores, short), (raised, alike)):
            reached = fast.least(least, of)[:, None] <= bounds
            assert bool(reached[right >= least[:, None]].all()), dtype
    close = fast_queries(queries, torch.float32)
    rows, columns = all_pairs(80, 200)
    pairs = close.pairs(rows, items, columns).view(80, 200)
    low, high = close.between(pairs, close.margins(items, of_pairs=True)[:, None], items)
    assert bool(((low <= right) & (right <= high)).all())


def test_an_item_is_raised_by_what_it_alone_is_off():
    """One channel that stands out makes a coarse row; the others are looked at as closely as before."""
    features, gallery = torch.randn(100, 64), torch.randn(2000, 64)
    gallery[::50, 0] = 30.0
    fast = fast_queries(canonical_queries(None, features), torch.int8)
    items = given_rows(gallery, True).to(torch.int8)
    least = torch.full((100,), 0.3, dtype=torch.float64)
    by_the_largest = fast.least(least, items)[:, None] <= fast.product(items)
    raised, alike = fast.raised(items)
    by_its_own = fast.least(least, alike)[:, None] <= raised
    assert int(by_its_own.sum()) < 0.8 * int(by_the_largest.sum())


def used(monkeypatch, gallery, queries=100, k=3):
    """In which dtype each part was looked at, and with how many queries."""
    seen, look = [], first_look._look
    monkeypatch.setattr(first_look, "_look", lambda *given: seen.append(given[0]) or look(*given))
    features = torch.randn(queries, gallery.shape[1])
    found, looks = topk(None, features, gallery, k, gallery_chunk=64), list(seen)
    monkeypatch.setattr(first_look, "short_dtypes", lambda device: ())
    right = topk(None, features, gallery, k)
    assert torch.equal(found.indices, right.indices)
    assert torch.equal(found.scores, right.scores)
    return [(fast.rows.dtype, len(fast.rows)) for fast in looks]


def test_whole_numbers_look_first_where_they_leave_little_open(monkeypatch):
    seen = used(monkeypatch, torch.randn(6000, 64))
    assert seen[0] == (torch.bfloat16, 100)  # with nothing to compare with
    assert seen.count((torch.int8, 100)) >= 75


def test_where_they_leave_much_open_they_are_tried_more_and_more_seldom(monkeypatch):
    """As features of an encoder that nearly collapsed do: cosines from 0.98 up."""
    seen = used(monkeypatch, 1 + 0.07 * torch.randn(6000, 64))
    tried = [number for dtype, number in seen if dtype == torch.int8]
    assert tried.count(first_look.TRIED) <= 8
    assert tried.count(100) <= 4
    assert len(seen) - len(tried) >= 75


def test_few_queries_are_multiplied_as_they_are(monkeypatch):
    seen = used(monkeypatch, torch.randn(6000, 64), queries=20)
    assert {dtype for dtype, _ in seen} == {torch.float32}


def test_what_turns_out_to_leave_much_open_is_looked_at_again_in_the_usual_dtype():
    """Queries beyond those that were tried are farther from their best items."""
    features, gallery = torch.randn(128, 64), torch.randn(500, 64)
    queries = canonical_queries(None, features)
    first = FirstLook(queries, fast_queries(queries, torch.float32), (torch.bfloat16, torch.int8))
    items = given_rows(gallery, True)
    least = torch.full((128,), 0.9, dtype=torch.float64)
    look, places = first.at_most(items, None, least)
    assert (look.fast.rows.dtype, len(places)) == (torch.int8, 0)
    least[first_look.TRIED :] = -0.9
    look, places = first.at_most(items, None, least)
    assert (look.fast.rows.dtype, len(places)) == (torch.bfloat16, 64 * 500)
    least[:] = 0.9
    assert [first.at_most(items, None, least)[0].fast.rows.dtype for _ in range(3)] == [torch.bfloat16] + [
        torch.int8
    ] * 2
