"""Pairs of equal label, and the positives by rising score."""

import torch

from gssf_plug.evaluation.positives import LabelGroups, Matches, Positives
from gssf_plug.evaluation.scores import GivenScores


def test_matches_are_the_pairs_of_equal_label():
    labels, asked = torch.randint(6, (40,)), torch.randint(8, (17,))  # two labels that no item has
    groups = LabelGroups(labels)
    matches, right = groups.matches(asked), asked[:, None] == labels
    assert torch.equal(groups.counts(asked), right.sum(1))
    assert matches.counted.all()
    rows, columns = right.nonzero(as_tuple=True)
    assert torch.equal(matches.rows, rows)
    assert torch.equal(matches.columns, columns)


def test_pairs_of_some_queries_stand_together():
    matches = LabelGroups(torch.randint(6, (40,))).matches(torch.randint(8, (17,)))
    for rows in (slice(0, 17), slice(3, 9), slice(16, 17), slice(4, 4)):
        here = matches.between(rows)
        inside = (matches.rows >= rows.start) & (matches.rows < rows.stop)
        assert torch.equal(matches.rows[here], matches.rows[inside])


def test_scores_rise_and_carry_their_columns():
    scores = torch.randn(9, 30)
    matches = LabelGroups(torch.randint(4, (30,))).matches(torch.randint(5, (9,)))
    matches = matches._replace(counted=torch.rand(len(matches.rows)) < 0.7)
    positives = Positives(GivenScores(scores).of(slice(0, 9)), matches, None)
    for row in range(9):
        own = matches.columns[(matches.rows == row) & matches.counted]
        kept = positives.scores[row] < float("inf")
        assert int(kept.sum()) == int(positives.counts[row]) == len(own)
        assert torch.equal(positives.scores[row][kept], scores[row, own].double().sort().values)
        assert torch.equal(scores[row, positives.columns[row][kept]].double(), positives.scores[row][kept])


def test_of_equal_scores_the_higher_grade_comes_first():
    columns = torch.tensor([0, 1, 2, 3])
    grades = torch.tensor([1.0, 3.0, 2.0, 5.0])
    matches = Matches(torch.zeros(4, dtype=torch.long), columns, torch.ones(4, dtype=torch.bool), grades)
    positives = Positives(GivenScores(torch.tensor([[2.0, 2.0, 2.0, 1.0]])).of(slice(0, 1)), matches, None)
    assert positives.scores.tolist() == [[1.0, 2.0, 2.0, 2.0]]
    assert positives.grades.tolist() == [[5.0, 3.0, 2.0, 1.0]]
