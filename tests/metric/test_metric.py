"""Bad input to GSSFMetric, the texts of its errors, and what the structures share."""

import numpy as np
import pytest
import torch

from gssf_plug import GSSFMetric
from gssf_plug.errors import ArgumentError

pytestmark = pytest.mark.bad_input


def test_block_that_does_not_divide() -> None:
    with pytest.raises(ArgumentError, match=r"`block_size` must divide dim=10, but got 3. Use one of \[1, 2, 5, 10\]."):
        GSSFMetric(10, block_size=3)
    GSSFMetric(10, terms=("diagonal",))  # the default block size is not read


@pytest.mark.parametrize("size", [0, -4, 2.0, True])
def test_block_size_is_a_positive_whole_number(size: object) -> None:
    with pytest.raises(
        ArgumentError, match=r"`block_size` must be a whole number of at least 1, .* Use a divisor of dim=8\."
    ):
        GSSFMetric(8, block_size=size)


def test_unknown_term_names_the_near_one() -> None:
    with pytest.raises(ArgumentError, match=r"but got 'blockdiagonal'. Did you mean 'block_diagonal' or 'diagonal'\?"):
        GSSFMetric(8, terms=("blockdiagonal",))


@pytest.mark.parametrize("terms", [5, (), ("diagonal", "diagonal")])
def test_terms_are_a_tuple_of_different_names(terms: object) -> None:
    with pytest.raises(ArgumentError, match="`terms` must be a tuple of different term names"):
        GSSFMetric(8, terms=terms)


def test_unknown_constraint() -> None:
    with pytest.raises(ArgumentError, match=r"`constraint` must be None or one of .* got 'sym'. "):
        GSSFMetric(8, block_size=4, constraint="sym")


def test_dim_is_positive() -> None:
    with pytest.raises(ArgumentError, match="`dim` must be a whole number of at least 1, but got 0"):
        GSSFMetric(0)


@pytest.mark.parametrize("method", ["fold", "gallery"])
def test_wrong_width(method: str) -> None:
    metric = GSSFMetric(8, block_size=4)
    with pytest.raises(ArgumentError, match=r"must have 8 channels in its last dimension, but got shape \(3, 9\)"):
        getattr(metric, method)(torch.randn(3, 9))


def test_wrong_width_names_the_side() -> None:
    metric = GSSFMetric(8, block_size=4)
    with pytest.raises(ArgumentError, match="`items` must have 8 channels"):
        metric(torch.randn(3, 8), torch.randn(3, 9))


def test_single_vectors_are_sent_to_aligned() -> None:
    metric = GSSFMetric(8, block_size=4)
    with pytest.raises(ArgumentError, match=r"`gallery` must be a matrix of features .* metric.pairwise"):
        metric(torch.randn(3, 8), torch.randn(8))


@pytest.mark.parametrize("grouping", [torch.arange(7), torch.zeros(8, dtype=torch.long), torch.arange(1, 9)])
def test_grouping_is_a_permutation(grouping: torch.Tensor) -> None:
    with pytest.raises(ArgumentError, match="`grouping` must be a permutation of 0 … 7"):
        GSSFMetric(8, block_size=4, grouping=grouping)


def test_adjacency_rules() -> None:
    band = torch.eye(4, dtype=torch.bool)
    with pytest.raises(ArgumentError, match=r"`adjacency` must be a boolean matrix of 4×4, but got torch.float32"):
        GSSFMetric(4, adjacency=band.float())
    hole = band.clone()
    hole[2, 2] = False
    with pytest.raises(ArgumentError, match=r"must contain the diagonal.*False at \(2, 2\)"):
        GSSFMetric(4, adjacency=hole)
    with pytest.raises(ArgumentError, match="must not be used with constraint='psd'"):
        GSSFMetric(4, adjacency=band, constraint="psd")
    skew = band.clone()
    skew[0, 1] = True
    with pytest.raises(ArgumentError, match="must be symmetric for constraint='symmetric'"):
        GSSFMetric(4, adjacency=skew, constraint="symmetric")
    GSSFMetric(4, adjacency=skew)


def test_nan_features_stay_visible() -> None:
    """The metric is too hot a path to check; NaN must come out, not vanish."""
    metric = GSSFMetric(8, block_size=4)
    x = torch.randn(3, 8)
    x[1, 2] = float("nan")
    scores = metric(x, torch.randn(4, 8))
    assert bool(scores[1].isnan().all())
    assert bool(scores[[0, 2]].isfinite().all())


def test_parameters_are_counted_as_the_formula_says() -> None:
    count = lambda **options: sum(p.numel() for p in GSSFMetric(64, **options).parameters())  # noqa: E731
    assert count(terms=("diagonal",)) == 64
    assert count(terms=("block_diagonal",), block_size=16) == 64 * 16
    assert count() == 64 + 64 * 16
    assert count(terms=("dense",)) == 64 * 64


def test_a_new_grouping_in_a_state_dict_is_followed() -> None:
    first, second = torch.randperm(8), torch.arange(8).flip(0)
    metric, other = (GSSFMetric(8, block_size=2, grouping=grouping) for grouping in (first, second))
    torch.nn.init.normal_(other.structures["block_diagonal"].weight)
    metric.load_state_dict(other.state_dict())
    x, y = torch.randn(3, 8), torch.randn(4, 8)
    assert torch.equal(metric(x, y), other(x, y))
    torch.testing.assert_close(metric.matrix(), other.matrix())


@pytest.mark.parametrize("other", [torch.float32, torch.bfloat16, torch.float64])
def test_sides_of_two_dtypes_are_scored_in_the_one_that_holds_both(other: torch.dtype) -> None:
    metric = GSSFMetric(8, block_size=4)
    with torch.no_grad():
        metric.structures["block_diagonal"].weight.normal_()
    x, y = torch.randn(6, 8).half(), torch.randn(4, 8).to(other)
    common = torch.promote_types(torch.float16, other)
    right = metric.fold(x).to(common) @ metric.gallery(y).to(common).T
    assert metric(x, y).dtype == common
    torch.testing.assert_close(metric(x, y), right, rtol=0, atol=0)
    assert metric(y, x).dtype == common
    assert metric.pairwise(x[:4], y).dtype == common


def test_rows_that_do_not_suit_each_other_are_refused() -> None:
    metric, x = GSSFMetric(8, block_size=4), torch.randn(6, 8)
    for wrong in (x[:0], x[:5]):
        with pytest.raises(ArgumentError, match=r"`y` must have leading dimensions that suit those of `x`, \(6,\)"):
            metric.pairwise(x, wrong)
    with pytest.raises(ArgumentError, match=r"`gallery` must have leading .* of `queries`, \(2,\), but got \(3,\)"):
        metric(torch.randn(2, 6, 8), torch.randn(3, 6, 8))
    assert metric.pairwise(x, x[:1]).shape == (6,)
    assert metric(torch.randn(2, 1, 6, 8), torch.randn(3, 4, 8)).shape == (2, 3, 6, 4)


def test_options_come_out_as_plain_python() -> None:
    """So that files can hold them."""
    metric = GSSFMetric(np.int64(8), terms=("dense",), block_size=np.int64(4), normalize=np.bool_(True))
    assert {type(metric.file_config()[name]) for name in ("dim", "block_size")} == {int}
    assert metric.normalize is True
