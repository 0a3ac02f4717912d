"""Counts of what scores at least as high as a positive, beside comparing every pair's canonical score."""

import pytest
import torch
from metric.scored import sum_exactly

from gssf_plug.evaluation import negatives as module
from gssf_plug.evaluation.negatives import NegativeCounts
from gssf_plug.evaluation.positives import LabelGroups, Positives
from gssf_plug.evaluation.scores import FeatureScores, GivenScores, features
from gssf_plug.metric import exact_scores
from gssf_plug.metric.exact.int8.two_digits import digit_rows
from gssf_plug.metric.exact_scores import CanonicalScores


def counted(scores, matches, at_once, limit=None, chunk=None):
    positives = Positives(scores, matches, limit)
    total = torch.zeros_like(positives.columns)
    for columns in scores.parts:
        negatives = NegativeCounts(scores, columns, positives, matches)
        for start in range(0, len(total), at_once):
            negatives.add(slice(start, min(start + at_once, len(total))), chunk)
        total += negatives.finish()
    return positives, total


def check(positives, total, table, matches):
    kept = torch.ones_like(table, dtype=torch.bool)
    kept[matches.rows, matches.columns] = False
    for row, (own, count) in enumerate(zip(positives.columns, positives.counts.tolist(), strict=True)):
        rising = table[row, own[:count]].sort().values
        right = (table[row][kept[row]] >= rising[:, None]).sum(1)
        assert torch.equal(total[row, :count], right)


KINDS = {
    "apart": lambda rows: torch.randn(rows, 24),
    "shared direction": lambda rows: 3 + torch.randn(rows, 24),
    "copies": lambda rows: torch.randn(5, 24)[torch.randint(5, (rows,))],
    "nearly equal": lambda rows: torch.ones(rows, 24) + 1e-7 * torch.randn(rows, 24),
    "signs": lambda rows: torch.randint(2, (rows, 24)) * 2.0 - 1,
}


@pytest.mark.parametrize(("dtype", "shared"), [(torch.bfloat16, 10), (torch.int8, 60)])
def test_what_a_short_dtype_leaves_open_is_multiplied_in_float32_from_then_on(dtype, shared, monkeypatch):
    """As features of most encoders, which share a direction: their scores differ by what is rounded."""
    sum_exactly(monkeypatch)
    queries, gallery = shared + torch.randn(40, 24), shared + torch.randn(400, 24)
    matches = LabelGroups(torch.randint(9, (400,))).matches(torch.randint(9, (40,)))
    features = FeatureScores(None, queries, gallery, dtype)
    scores = features.of(slice(0, 40))
    positives, total = counted(scores, matches, 20)
    everything = torch.cartesian_prod(torch.arange(40), torch.arange(400))
    check(positives, total, scores.canonical(everything[:, 0], everything[:, 1]).view(40, 400), matches)
    assert features.dtype == torch.float32
    assert not features.look_closer()
    matches = LabelGroups(torch.arange(400)).matches(torch.arange(40))
    apart = FeatureScores(None, torch.randn(40, 24), torch.randn(400, 24), dtype)
    counted(apart.of(slice(0, 40)), matches, 20)
    assert apart.dtype == dtype


@pytest.mark.parametrize(("shared", "tried"), [(0, 1), (60, 0)])
def test_a_sample_spares_digits_of_a_gallery_that_leaves_much_open(shared, tried, monkeypatch):
    sum_exactly(monkeypatch)
    made = []
    monkeypatch.setattr(features, "digit_rows", lambda items: made.append(len(items.rows)) or digit_rows(items))
    queries, gallery = shared + torch.randn(40, 24), shared + torch.randn(4096, 24)
    matches = LabelGroups(torch.arange(4096)).matches(torch.arange(40))
    scores = FeatureScores(None, queries, gallery, torch.int8).of(slice(0, 40))
    negatives = NegativeCounts(scores, slice(0, 4096), Positives(scores, matches, None), matches)
    negatives.add(slice(0, 40), 8)
    assert made == [512, *[4096] * tried]


@pytest.mark.parametrize("two", [True, False])
def test_what_one_thread_leaves_too_open_is_scored_anew_and_once(two, monkeypatch, two_threads):
    """A sample that saw nothing of it: the chunks of each thread after its first are not looked at in vain."""
    sum_exactly(monkeypatch)
    monkeypatch.setattr(NegativeCounts, "_ask_a_sample", lambda self, rows: None)
    queries, gallery = 12 + torch.randn(64, 24), 12 + torch.randn(500, 24)
    matches = LabelGroups(torch.randint(120, (500,))).matches(torch.randint(120, (64,)))
    queried = FeatureScores(None, queries, gallery, torch.int8)
    scores, seen = queried.of(slice(0, 64)), []
    part = type(scores).part
    monkeypatch.setattr(
        type(scores),
        "part",
        lambda self, columns, rows, **how: seen.append(queried.dtype) or part(self, columns, rows, **how),
    )
    positives, total = counted(scores, matches, 64, chunk=8 if two else None)
    assert 1 <= seen.count(torch.int8) <= 2
    assert seen.count(torch.float32) == (16 if two else 2)
    everything = torch.cartesian_prod(torch.arange(64), torch.arange(500))
    check(positives, total, scores.canonical(everything[:, 0], everything[:, 1]).view(64, 500), matches)


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.int8])
@pytest.mark.parametrize(("waiting", "table"), [(0, False), (1_048_576, False), (1_048_576, True)])
def test_equals_comparing_every_pair(kind, dtype, waiting, table, monkeypatch, two_threads):
    """Pair by pair, and where a table of canonical scores is to be had, by that; on one thread, and on several."""
    sum_exactly(monkeypatch)
    monkeypatch.setattr(module, "WAITING_AT_MOST", waiting)
    monkeypatch.setattr(module, "MANY_OPEN", 10**9)
    monkeypatch.setattr(exact_scores, "FEW_DIFFERENT", 8)
    seen, has = [], CanonicalScores.has_table
    monkeypatch.setattr(CanonicalScores, "has_table", lambda self, some: table and has(self, some))
    count = module.count_in_order
    monkeypatch.setattr(module, "count_in_order", lambda *given: seen.append(len(given[0])) or count(*given))
    queries, gallery = KINDS[kind](30), KINDS[kind](90)
    matches = LabelGroups(torch.randint(9, (90,))).matches(torch.randint(9, (30,)))
    matches = matches._replace(counted=torch.rand(len(matches.rows)) < 0.7)
    scores = FeatureScores(None, queries, gallery, dtype, columns_at_once=40).of(slice(0, 30))
    everything = torch.cartesian_prod(torch.arange(30), torch.arange(90))
    right = scores.canonical(everything[:, 0], everything[:, 1]).view(30, 90)
    for at_once in (30, 7):
        check(*counted(scores, matches, at_once), right, matches)
    check(*counted(scores, matches, 30, chunk=4), right, matches)
    assert bool(seen) == (table and kind in ("copies", "signs"))


def test_given_scores_are_compared_as_they_are(monkeypatch):
    table = torch.randint(12, (20, 50)).float()
    matches = LabelGroups(torch.randint(5, (50,))).matches(torch.randint(5, (20,)))
    for _ in range(2):
        check(*counted(GivenScores(table).of(slice(0, 20)), matches, 6), table, matches)
        monkeypatch.setattr(module, "MANY_OPEN", 0)  # no table


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.int8])
@pytest.mark.parametrize("apart", [1.0, 1e-4])  # so near that a float64 product tells what float32 does not
def test_beyond_the_limit_a_count_stays_beyond_it(dtype, apart, monkeypatch, two_threads):
    sum_exactly(monkeypatch)
    queries, gallery = (1 / apart - 1 + torch.randn(count, 24, dtype=torch.float64) for count in (30, 900))
    matches = LabelGroups(torch.randint(60, (900,))).matches(torch.randint(60, (30,)))
    scores, limit = FeatureScores(None, queries, gallery, dtype).of(slice(0, 30)), torch.randint(1, 9, (30,))
    positives, whole = counted(scores, matches, 30)
    _, cut = counted(scores, matches, 7, limit)
    valid, within = positives.scores < float("inf"), whole < limit[:, None]
    assert torch.equal(cut[valid & within], whole[valid & within])
    assert (cut >= limit[:, None])[valid & ~within].all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.int8])
def test_few_pairs_wait_where_queries_have_unequal_numbers_of_positives(dtype, monkeypatch):
    """Rows with fewer positives than others are padded, and the padding must not leave everything open."""
    queries, gallery = torch.randn(30, 64), torch.randn(4000, 64)
    matches = LabelGroups(torch.arange(4000) // 9).matches(torch.arange(30))
    matches = matches._replace(counted=torch.rand(len(matches.rows)) < 0.5)
    sum_exactly(monkeypatch)
    scores, seen = FeatureScores(None, queries, gallery, dtype).of(slice(0, 30)), []
    narrow = NegativeCounts._narrow
    monkeypatch.setattr(
        NegativeCounts, "_narrow", lambda self, tiles: seen.append(len(tiles[0].own)) or narrow(self, tiles)
    )
    counted(scores, matches, 30)
    assert sum(seen) < {torch.bfloat16: 0.25, torch.float32: 0.05, torch.int8: 0.01}[dtype] * 30 * 4000
