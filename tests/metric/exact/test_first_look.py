"""What looks first: every dtype's scores within their bound, and int8 only where it leaves little open."""

import pytest
import torch
from metric.scored import KINDS, NARROW, all_pairs, canonical, perturbed, sum_exactly

from gssf_plug.metric import topk
from gssf_plug.metric.exact import first_look
from gssf_plug.metric.exact.canonical import canonical_queries
from gssf_plug.metric.exact.fast_rows import given_rows
from gssf_plug.metric.exact.fast_scores import fast_queries
from gssf_plug.metric.exact.first_look import FirstLook, Look, Part, WholeLook, short_dtypes
from gssf_plug.metric.exact.int8 import whole_numbers
from gssf_plug.metric.exact.int8.whole_numbers import whole_queries, whole_rows


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
    for dtype in (torch.bfloat16, torch.float32):
        fast, short = fast_queries(queries, dtype), items.to(dtype)
        scores = fast.product(short)
        low, high = fast.between(scores, fast.margins(short)[:, None], short)
        assert bool(((low <= right) & (right <= high)).all()), dtype
    close = fast_queries(queries, torch.float32)
    for hidden in (None, torch.rand(80, 200) < 0.1):
        least = (right if hidden is None else right.masked_fill(hidden, -torch.inf)).sort(dim=1).values[:, 150]
        wanted = right >= least[:, None]
        wanted = wanted if hidden is None else wanted & ~hidden
        for dtypes in ((torch.int8, torch.bfloat16), (torch.bfloat16,), ()):
            look, at = FirstLook(queries, close, dtypes).at_most(Part.of(items), hidden, least)
            width = look.scores.shape[1]
            reached = torch.zeros(80, width, dtype=torch.bool)
            reached.view(-1)[at] = True
            assert bool(reached[:, :200][wanted].all()), dtypes
            assert not bool(reached[:, 200:].any())
            assert hidden is None or not bool(reached[:, :200][hidden].any())
    rows, columns = all_pairs(80, 200)
    pairs = close.pairs(rows, items, columns).view(80, 200)
    low, high = close.between(pairs, close.margins(items, of_pairs=True)[:, None], items)
    assert bool(((low <= right) & (right <= high)).all())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [66, 1000])
@pytest.mark.parametrize("scattered", [True, False])
def test_what_so_many_items_score_at_least(kind, size, scattered):
    """And for the opposite queries, the other end."""
    features, gallery = KINDS[kind](40), KINDS[kind](size)
    queries, items = canonical_queries(None, features), given_rows(gallery, True)
    close, rows = fast_queries(queries, torch.float32), whole_rows(items)
    right = canonical(None, features, gallery)
    for rank in (1, 3, size):
        for look in (Look(close, items, close.product(items), False), whole_look(queries, rows)):
            scores = right
            for _ in range(2):
                kth = scores.sort(dim=1, descending=True).values[:, rank - 1]
                low = look.at_least(rank, scattered=scattered)
                assert bool((low <= kth).all())
                assert bool((low > -2).all())
                wanted = torch.zeros(40, size, dtype=torch.bool)
                wanted.view(-1)[_of(look.reaching(low), look, size)] = True
                assert bool(wanted[scores >= kth[:, None]].all())
                look, scores = look.opposite(), -scores
        assert bool((look.at_least(look.scores.shape[1] + 1) == -torch.inf).all())


def whole_look(queries, rows):
    whole = whole_queries(queries)
    return WholeLook(whole, rows, whole.sums(rows, torch.empty(40, rows.padded, dtype=torch.int32)))


def _of(places, look, size):
    """Places of a padded look in a table of so many columns."""
    width = look.scores.shape[1]
    assert bool((places % width < size).all())
    return places // width * size + places % width


@pytest.mark.parametrize("kind", KINDS)
def test_what_surely_reaches_a_score_does(kind):
    features, gallery = KINDS[kind](40), KINDS[kind](200)
    queries, rows = canonical_queries(None, features), whole_rows(given_rows(gallery, True))
    look = whole_look(queries, rows)
    right = canonical(None, features, gallery)
    least = right.sort(dim=1).values[:, 150]
    sure = _of(look.surely_reaching(least), look, 200)
    one = look.whole.steps[:, None] * rows.steps.max()  # what a sum is rounded by
    assert bool((right + one >= least[:, None]).flatten()[sure].all())
    assert set(sure.tolist()) <= set(_of(look.reaching(least), look, 200).tolist())


def used(monkeypatch, gallery, queries=100, k=3):
    """In which dtype each part was looked at, and with how many queries."""
    seen, at, whole = [], FirstLook.at, FirstLook._whole_look
    monkeypatch.setattr(FirstLook, "at", lambda self, *given: seen.append(self.usual) or at(self, *given))
    monkeypatch.setattr(FirstLook, "_whole_look", lambda self, *given: seen.append(given[0]) or whole(self, *given))
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


def test_what_items_share_is_no_reason_to_leave_much_open(monkeypatch):
    """As features of most encoders do: cosines around 0.9; the first part is looked at in float32."""
    seen = used(monkeypatch, 0.95 * torch.randn(1, 64) + 0.3 * torch.randn(6000, 64))
    assert seen[0] == (torch.float32, 100)
    assert seen.count((torch.int8, 100)) >= 75


def test_where_they_leave_much_open_they_are_tried_more_and_more_seldom(monkeypatch):
    """As features of an encoder that nearly collapsed to two points do: cosines from 0.98 up to one of them."""
    seen = used(monkeypatch, torch.randn(2, 64)[torch.randint(2, (6000,))] + 0.05 * torch.randn(6000, 64))
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
    items = Part.of(given_rows(gallery, True))
    least = torch.full((128,), 0.9, dtype=torch.float64)
    look, places = first.at_most(items, None, least)
    assert isinstance(look, WholeLook)
    assert len(places) == 0
    least[first_look.TRIED :] = -0.9
    look, places = first.at_most(items, None, least)
    assert (look.fast.rows.dtype, len(places)) == (torch.bfloat16, 64 * 500)
    least[:] = 0.9
    assert [type(first.at_most(items, None, least)[0]) for _ in range(3)] == [Look, WholeLook, WholeLook]


def test_channels_whose_sums_leave_32_bits_are_not_multiplied_as_whole_numbers(monkeypatch):
    assert whole_numbers.MOST_CHANNELS * 127**2 < 2**31 <= (whole_numbers.MOST_CHANNELS + 1) * 127**2
    monkeypatch.setattr(whole_numbers, "MOST_CHANNELS", 63)
    assert {dtype for dtype, _ in used(monkeypatch, torch.randn(600, 64))} == {torch.bfloat16}
    monkeypatch.setattr(first_look, "short_dtypes", lambda device: (torch.bfloat16, torch.int8))
    monkeypatch.setattr(whole_numbers, "MOST_CHANNELS", 64)
    assert torch.int8 in {dtype for dtype, _ in used(monkeypatch, torch.randn(600, 64))}


def test_one_channel_is_not_multiplied_as_whole_numbers(monkeypatch):
    """torch 2.13 does not write their product."""
    assert torch.int8 not in {dtype for dtype, _ in used(monkeypatch, torch.randn(6000, 1))}


def test_short_dtypes_come_from_the_longest_to_the_shortest(monkeypatch):
    monkeypatch.undo()
    cpu = torch.device("cpu")
    for floats, ints, right in (
        (torch.bfloat16, True, (torch.bfloat16, torch.int8)),
        (torch.float32, True, (torch.int8,)),
        (torch.bfloat16, False, (torch.bfloat16,)),
        (torch.float32, False, ()),
    ):
        monkeypatch.setattr(first_look, "fast_dtype", lambda device, floats=floats: floats)
        monkeypatch.setattr(first_look, "multiplies_int8", lambda ints=ints: ints)
        assert short_dtypes(cpu) == right
        assert short_dtypes(torch.device("cuda")) == ()
