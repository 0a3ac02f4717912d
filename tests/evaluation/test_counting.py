"""Certain counts and what they leave open, beside comparing every score with every positive."""

import pytest
import torch

from gssf_plug.evaluation import counting
from gssf_plug.evaluation.counting import certain_counts, certain_pairs, count_in_order, count_reaching
from gssf_plug.evaluation.positives import LabelGroups
from gssf_plug.evaluation.ranking import rank_positives
from gssf_plug.evaluation.scores import FeatureScores
from gssf_plug.metric.exact.fast_scores import Open


def bounded(dtype, rows=9, items=300, most=5):
    scores = torch.randn(rows, items).to(dtype)
    own = torch.randn(rows, most).sort(dim=1).values
    low, high = (own - 0.05).to(dtype), (own + 0.05).to(dtype)
    own_count = torch.randint(most + 1, (rows,))
    none = torch.arange(most) >= own_count[:, None]
    return scores, low.masked_fill(none, torch.inf), high.masked_fill(none, torch.inf)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("shift", [0.0, 100.0, -100.0])
@pytest.mark.parametrize("at_once", [1, 700, 1 << 20])
def test_every_score_is_counted_or_open(dtype, shift, at_once, monkeypatch):
    monkeypatch.setattr(counting, "COUNTED_AT_ONCE", at_once)
    for _ in range(10):
        scores, low, high = (one + shift for one in bounded(dtype))
        scores[:, ::17] = -torch.inf
        before = low.clone(), high.clone()
        counts, at = certain_counts(scores, low, high)
        assert torch.equal(low, before[0])
        assert torch.equal(high, before[1])
        is_open = torch.zeros(scores.numel(), dtype=torch.bool).index_fill(0, at, True).view(scores.shape)
        above = scores[:, None] > high[:, :, None]
        between = ~above & (scores[:, None] >= low[:, :, None])
        assert not (between & ~is_open[:, None]).any()
        assert torch.equal(counts, (above & ~is_open[:, None]).sum(2).masked_fill(low == torch.inf, 0))
        assert is_open.double().mean() < 0.5 or shift  # most are certain


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("listed", [False, True])
def test_bins_on_other_devices_count_the_same(dtype, listed):
    """By torch alone; which places stay open depends on the bins, which are those of a block here and of all there."""
    scores, low, high = bounded(dtype)
    listed_at = (scores >= low.amin(1, keepdim=True)).flatten().nonzero()[:, 0] if listed else None
    counts, at = counting._binned(scores, low, high, listed_at)
    again, same = certain_counts(scores, low, high)
    assert torch.equal(counts, again)
    if listed:
        assert torch.equal(at, same)
    assert set(at.tolist()) >= set(same.tolist())  # a score just below may share a bin with a bound


def test_no_rows_and_no_positives():
    counts, at = certain_counts(torch.empty(0, 7), torch.empty(0, 2), torch.empty(0, 2))
    assert counts.shape == (0, 2)
    assert not len(at)
    none = torch.full((3, 2), torch.inf)
    counts, at = certain_counts(torch.randn(3, 7), none, none)
    assert not counts.any()
    assert not len(at)


def test_huge_scores_leave_no_warning_behind():
    scores = torch.tensor([[3e38, -3e38, 0.0, 1.0], [1e-45, -1e-45, 0.0, -0.0]])
    low = torch.tensor([[-3.1e38, 2.9e38], [-1e-45, 0.0]])
    counts, at = certain_counts(scores, low, low)
    is_open = torch.zeros(8, dtype=torch.bool).index_fill(0, at, True).view(2, 4)
    reach = scores[:, None] >= low[:, :, None]
    assert torch.equal(counts + (reach & is_open[:, None]).sum(2), reach.sum(2))


def test_pairs_are_counted_or_open():
    own = torch.randn(9, 5, dtype=torch.float64).sort(dim=1).values
    rows, scores = torch.randint(9, (4000,)), torch.randn(4000, dtype=torch.float64)
    pairs = Open(scores - 0.02, scores + 0.02)
    counts, still = certain_pairs(pairs, rows, own - 0.01, own + 0.01)
    away = (pairs.low[:, None] > own[rows] + 0.01) | (pairs.high[:, None] < own[rows] - 0.01)
    assert not away[still].all(1).any()
    assert away.all(1).sum() == len(rows) - len(still)
    certain = torch.ones(4000, dtype=torch.bool).index_fill(0, still, False)
    right = torch.zeros(9, 5, dtype=torch.long)
    right.index_add_(0, rows[certain], (scores[certain, None] > own[rows[certain]]).long())
    assert torch.equal(counts, right)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_ranks_within_a_limit_are_right_and_others_stay_beyond(dtype):
    features, labels = torch.randn(900, 16), torch.randint(60, (900,))
    features[::3] = features[labels[::3]]  # copies, whose scores tie
    matches = LabelGroups(labels).matches(labels[:200])
    matches = matches._replace(counted=matches.columns != matches.rows)
    scores = FeatureScores(None, features, features, dtype).of(slice(0, 200))
    limit = torch.randint(1, 14, (200,))
    whole, cut = rank_positives(scores, matches), rank_positives(scores, matches, limit)
    kept = limit[torch.bincount(matches.rows[matches.counted], minlength=200) > 0][:, None]
    within = whole.valid & (whole.ranks <= kept)
    assert torch.equal(whole.ranks[within], cut.ranks[within])
    assert (cut.ranks > kept)[whole.valid & ~within].all()


@pytest.mark.parametrize("direct", [0, 1_000_000_000])
@pytest.mark.parametrize("most", [1, 4])
def test_what_reaches_is_counted_with_ties_by_bins_or_directly(
    direct: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting, "DIRECT", direct - 2 * 70)
    generator = torch.Generator().manual_seed(0)
    scores = (torch.randn(50, 70, generator=generator) * 4).round() / 4  # many ties
    own = scores[:, :most].clone()
    own[::3, most // 2 :] = torch.inf  # fewer positives, or none
    own = own.sort(dim=1).values
    expected = (scores[:, None] >= own[:, :, None]).sum(2)
    assert torch.equal(count_reaching(own, scores), expected)
    assert torch.equal(count_in_order(own, scores.clone()), expected)
