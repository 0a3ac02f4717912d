"""Ranks by counting against sorting, in the cases that random data does not reach."""

import pytest
import torch

from gssf_plug.evaluation.positives import LabelGroups
from gssf_plug.evaluation.ranking import rank_positives
from gssf_plug.evaluation.scores import GivenScores


def rank(scores, matches):
    return rank_positives(GivenScores(scores).of(slice(0, len(scores))), matches)


def ranks_by_sorting(scores, positive, hidden):
    """Per row with a positive: the ranks of its positives, a positive after the others of its score."""
    found = []
    for row, mine, out in zip(scores.tolist(), positive.tolist(), hidden.tolist(), strict=True):
        kept = [(score, own) for score, own, away in zip(row, mine, out, strict=True) if not away]
        order = sorted(kept, key=lambda pair: (-pair[0], pair[1]))
        ranks = [place for place, (_, own) in enumerate(order, start=1) if own]
        found += [ranks] if ranks else []
    return found


def check(scores, query_labels, labels, taken_out):
    matches = LabelGroups(labels).matches(query_labels)
    counted = ~taken_out[matches.rows, matches.columns]
    same = query_labels[:, None] == labels
    assert len(matches.rows) == int(same.sum())
    assert bool(same[matches.rows, matches.columns].all())
    right = ranks_by_sorting(scores, same & ~taken_out, same & taken_out)
    got = rank(scores, matches._replace(counted=counted))
    assert [row[:count].tolist() for row, count in zip(got.ranks, got.positives, strict=True)] == right


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_equals_sorting_with_ties(dtype, levels):
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        scores = torch.randint(levels, (17, 40), generator=generator).to(dtype)
        query_labels, labels = (torch.randint(6, (count,), generator=generator) for count in (17, 40))
        check(scores, query_labels, labels, torch.rand(17, 40, generator=generator) < 0.3)


@pytest.mark.parametrize("positives", [1, 2, 3, 4, 7, 8, 9, 40])
def test_any_number_of_positives(positives):
    labels = (torch.arange(40) >= positives).long()  # from one positive to nothing else
    for place in (-10.0, 0.0, 10.0):  # all positives last, among the others, first
        scores = torch.randn(3, 40)
        scores[:, :positives] += place
        check(scores, torch.zeros(3).long(), labels, torch.zeros(3, 40).bool())


def test_rows_without_a_positive_are_left_out():
    labels = torch.tensor([4, 7, 7])
    matches = LabelGroups(labels).matches(torch.tensor([5, 7, 3, 4]))
    taken_out = matches._replace(counted=matches.columns != 0)
    got = rank(torch.randn(4, 3), taken_out)
    assert got.positives.tolist() == [2]
    nothing = rank(torch.randn(2, 3), LabelGroups(labels).matches(torch.tensor([1, 2])))
    assert len(nothing.positives) == 0
