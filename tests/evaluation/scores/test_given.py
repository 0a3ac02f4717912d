"""Scores that somebody else made are taken as they are."""

import pytest
import torch

from gssf_plug.errors import ArgumentError
from gssf_plug.evaluation.scores.given import GivenScores


def test_parts_are_copies_of_the_matrix():
    matrix = torch.randn(6, 9)
    right = matrix.clone()
    scores = GivenScores(matrix).of(slice(2, 5))
    part = scores.part(slice(1, 7), slice(1, 3))
    assert torch.equal(part.fast, right[3:5, 1:7])
    part.fast.zero_()
    scores.table(slice(0, 9)).zero_()
    assert torch.equal(matrix, right)
    rows, columns = torch.tensor([0, 2]), torch.tensor([8, 3])
    assert torch.equal(scores.canonical(rows, columns), right[[2, 4], [8, 3]].double())
    assert torch.equal(GivenScores(matrix).canonical(rows, columns), right[[0, 2], [8, 3]].double())


def test_nothing_is_off_and_nothing_can_be_finer():
    scores = GivenScores(torch.randn(6, 9)).of(slice(0, 6))
    assert not bool(scores.slack.any())
    assert not scores.look_closer()
    assert scores.side_by_side(slice(0, 9)) == 1
    assert not scores.part(slice(0, 9)).can_be_finer


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_are_refused(value):
    matrix = torch.randn(3, 4)
    matrix[1, 2] = value
    with pytest.raises(ArgumentError):
        GivenScores(matrix).of(slice(0, 3)).part(slice(0, 4))
