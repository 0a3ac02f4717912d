"""Means over rows: of the queries' side, of both, weighted; the older name of a mask; what an own loss calls it."""

import pytest
import torch
from torch import nn

from gssf_plug.errors import ArgumentError
from gssf_plug.losses.row_loss import RowLoss, RowSum, mask_name


class Squares(RowLoss):
    """Mean square of the positives of each row that has some."""

    def begin(self):
        def terms(pairs):
            rows = (pairs.scores**2 * pairs.positive).sum(1)
            return RowSum(rows.sum(), pairs.positive.any(1).sum())

        return terms


class OneSide(Squares):
    both_sides = False
    weight = 0.5


def reference(scores, relevance, exclude):
    total, number = 0.0, 0
    for row, relevant, out in zip(scores.tolist(), relevance.tolist(), exclude.tolist(), strict=True):
        terms = [s * s for s, r, x in zip(row, relevant, out, strict=True) if r and not x]
        total, number = total + sum(terms), number + bool(terms)
    return total / max(number, 1)


def batch():
    return torch.randn(3, 5), torch.rand(3, 5) < 0.4, torch.rand(3, 5) < 0.3


def test_the_mean_of_the_rows_of_each_side():
    scores, relevance, exclude = batch()
    own, other = reference(scores, relevance, exclude), reference(scores.T, relevance.T, exclude.T)
    assert own != pytest.approx(other)
    assert Squares()(scores, relevance, exclude=exclude).item() == pytest.approx(own + other)
    assert OneSide()(scores, relevance, exclude=exclude).item() == pytest.approx(own / 2)


def test_the_older_name_of_the_mask_and_not_both():
    scores, relevance, exclude = batch()
    right = Squares()(scores, relevance, exclude=exclude)
    assert torch.equal(Squares()(scores, relevance, forbidden=exclude), right)
    with pytest.raises(ArgumentError, match="`forbidden` must be left out beside `exclude`, but got both"):
        Squares()(scores, relevance, exclude=exclude, forbidden=exclude)


def test_where_nothing_counts_the_loss_is_zero_with_a_gradient():
    for shape in ((3, 5), (0, 5), (3, 0)):
        scores = torch.randn(shape, requires_grad=True)
        loss = Squares()(scores, torch.zeros(shape, dtype=torch.bool))
        loss.backward()
        assert loss == 0
        assert torch.equal(scores.grad, torch.zeros(shape) if shape == (3, 5) else torch.ones(shape))


def test_a_base_alone_has_no_terms():
    with pytest.raises(NotImplementedError):
        RowLoss()(torch.randn(2, 2), torch.eye(2).bool())


def test_what_an_own_loss_calls_its_mask():
    def loss(**names):
        made = nn.Module()
        made.forward = eval(f"lambda scores, relevance, *, {', '.join(names)}: None")
        return made

    assert mask_name(loss(exclude=1)) == "exclude"
    assert mask_name(loss(forbidden=1)) == "forbidden"
    assert mask_name(loss(exclude=1, forbidden=1)) == "exclude"
    assert mask_name(loss(other=1)) == "exclude"
