"""Where scores reach a bound, by groups and by bits, beside plain comparison."""

import pytest
import torch

from gssf_plug.metric.exact import reaching as module
from gssf_plug.metric.exact.reaching import (
    GROUP,
    at_least,
    group_peaks,
    places_at_least,
    reaching,
    reaching_groups,
    widened,
)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("items", [64, 200, 256])
def test_peaks_find_what_comparing_finds(dtype, items):
    scores = torch.randn(11, items).to(dtype)
    for least in (torch.full((11,), 1.5), torch.linspace(-1, 2, 11), torch.linspace(0.5, 9, 11)):
        least = least.to(dtype)
        right = (scores >= least[:, None]).flatten().nonzero()[:, 0]
        assert torch.equal(reaching(scores, least, group_peaks(scores)), right)
        assert torch.equal(reaching(scores, least), right)
        apart = torch.cat([scores, scores], dim=1)[:, :items]  # whose rows do not stand one behind the other
        assert torch.equal(reaching(apart, least, group_peaks(apart)), right)


@pytest.mark.parametrize("shape", [(11, 1), (1, 11), (1, 1)])
def test_bounds_of_rows_and_of_columns(shape):
    least = torch.linspace(-1, 1, 11).bfloat16()[: max(shape)].view(shape)
    scores = torch.randn(11 if shape[0] > 1 else 1, 11 if shape[1] > 1 else 40).bfloat16()
    assert torch.equal(at_least(scores, least), scores >= least)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize(("rows", "items"), [(11, 40), (1, 40), (11, 1), (1, 1), (0, 7)])
def test_one_of_two_bounds_is_enough(dtype, rows, items, monkeypatch):
    monkeypatch.setattr(module, "COMPARED_AT_ONCE", 100)
    for shift in (-1.0, 0.0, 1.0):
        scores = torch.randn(rows, items).to(dtype).masked_fill(torch.rand(rows, items) < 0.3, 0.0)
        scores = torch.where(torch.rand(rows, items) < 0.5, scores, -scores)  # zeros of both signs
        of_rows, of_items = (torch.randn(rows, 1) + shift).to(dtype), (torch.randn(1, items) + shift).to(dtype)
        of_rows[::3], of_items[:, ::4] = 0.0, -0.0
        right = ((scores >= of_rows) | (scores >= of_items)).flatten().nonzero()[:, 0]
        assert torch.equal(places_at_least(scores, of_rows, of_items), right)
        assert torch.equal(at_least(scores, of_items), scores >= of_items)


@pytest.mark.parametrize("at_once", [GROUP, 3 * GROUP, 1 << 20])
def test_whole_numbers_reach_the_bound_of_their_group(at_once, monkeypatch):
    monkeypatch.setattr(module, "INSIDE_AT_ONCE", at_once)
    sums = torch.randint(-100, 101, (11, 4 * GROUP), dtype=torch.int32)
    for most in (-100, 0, 99, 101):
        least = torch.randint(-101, most + 1, (11, 4), dtype=torch.int32)
        right = (sums >= least.repeat_interleave(GROUP, dim=1)).flatten().nonzero()[:, 0]
        assert torch.equal(reaching_groups(sums, least, group_peaks(sums)), right)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_what_numpy_compares_is_widened_to_the_same_numbers(dtype):
    scores = torch.randn(5, 7).to(dtype)
    scores[0, :3] = torch.tensor([0.0, -torch.inf, torch.inf])
    assert torch.equal(torch.from_numpy(widened(module.comparable(scores), dtype)).to(dtype), scores)
