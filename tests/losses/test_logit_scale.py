"""A learned factor on scores that stays inside its range, and comes back from either end."""

import math

import pytest
import torch

from gssf_plug.errors import ArgumentError
from gssf_plug.losses.logit_scale import LearnedScale, checked_range


def test_the_factor_is_an_exponential_that_scales_in_the_scores_own_dtype():
    scale = LearnedScale(2.0, 1.0, 10.0)
    scores = torch.randn(3, 4)
    torch.testing.assert_close(scale.begin()(scores), 2 * scores)
    assert scale.begin()(scores.half()).dtype == torch.float16
    assert scale.log_scale.item() == pytest.approx(math.log(2))
    assert scale.log_scale.shape == (1,)  # FSDP2 shards no scalars
    assert repr(scale) == "LearnedScale(factor=2 in [1, 10])"


def test_all_strips_of_a_batch_have_one_factor():
    scale = LearnedScale(2.0, 1.0, 10.0)
    scaled = scale.begin()
    with torch.no_grad():
        scale.log_scale.fill_(math.log(5))
    torch.testing.assert_close(scaled(torch.ones(1, 1)), torch.full((1, 1), 2.0))
    torch.testing.assert_close(scale.begin()(torch.ones(1, 1)), torch.full((1, 1), 5.0))


@pytest.mark.parametrize(("beyond", "bound"), [(50.0, 10.0), (0.1, 1.0)])
def test_beyond_its_range_it_is_put_back_and_keeps_its_gradient(beyond, bound):
    scale = LearnedScale(2.0, 1.0, 10.0)
    with torch.no_grad():
        scale.log_scale.fill_(math.log(beyond))
    assert scale.eval().factor().item() == pytest.approx(bound)
    assert scale.log_scale.item() == pytest.approx(math.log(beyond))  # evaluation changes no parameter
    factor = scale.train().factor()
    assert factor.item() == pytest.approx(bound)
    factor.backward()
    assert scale.log_scale.grad.item() == pytest.approx(bound)  # d exp θ / dθ


@pytest.mark.bad_input
def test_ranges():
    assert checked_range([1, 2.0]) == (1, 2.0)
    for wrong in (3.0, (1.0,), (1, 2, 3), "12", None):
        with pytest.raises(ArgumentError, match=r"`scale_range` must be two numbers \(lowest, highest\), but got"):
            checked_range(wrong)
    nan = float("nan")
    for wrong in ((0.5, 1, 10), (11, 1, 10), (1, 0, 10), (1, 1, math.inf), (nan, 1, 10), (True, 1, 10), ("1", 1, 10)):
        with pytest.raises(ArgumentError, match="`scale` must lie in a range of positive numbers, 0 < lowest <= init"):
            LearnedScale(*wrong)
