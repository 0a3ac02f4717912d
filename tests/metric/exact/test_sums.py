"""Sums that are one number whatever the road to it, against `math.fsum` and exact fractions."""

import math
from fractions import Fraction

import pytest
import torch

from gssf_plug.metric.exact import sums
from gssf_plug.metric.exact.sums import correct_roots, correct_sums, exact_product, power_of_two, scale_rows


def hard_rows():
    wild = torch.randn(60, 100, dtype=torch.float64) * 10.0 ** torch.randint(-14, 15, (60, 100))
    near = torch.randn(60, 50, dtype=torch.float64)
    return {
        "random": torch.randn(60, 33, dtype=torch.float64),
        "wild": wild,
        "cancelling": torch.cat([wild, -wild.flip(1), 1e-20 * wild], dim=1),
        "nearly cancelling": torch.cat([near, -near * (1 + 2.0**-52)], dim=1),
        "absorbed": torch.tensor([[1.0, 1e-40, -1.0], [1e16, 1.0, -1e16], [1.0, 2**-53, 2**-106]]).double(),
        "half way": torch.tensor([[1.0, 2**-53, 0.0], [1.0, 2**-53, 2**-105]], dtype=torch.float64),
        "one": torch.randn(5, 1, dtype=torch.float64),
        "zeros": torch.tensor([[-0.0, 0.0, -0.0]], dtype=torch.float64),
    }


@pytest.mark.parametrize("name", hard_rows())
def test_sums_are_correctly_rounded(name):
    rows = hard_rows()[name]
    found = correct_sums(rows)
    assert found.tolist() == [math.fsum(row) for row in rows.tolist()]
    assert not found[found == 0].signbit().any()
    assert torch.equal(correct_sums(rows[:, torch.randperm(rows.shape[1])]), found)  # no order shows


def test_no_terms():
    assert correct_sums(torch.empty(3, 0, dtype=torch.float64)).tolist() == [0, 0, 0]


def test_roots_are_correctly_rounded():
    squares = torch.cat(
        [torch.rand(3000, dtype=torch.float64), torch.tensor([0.0, 4.0, 1e-300, 5e-324, 1e300]).double()]
    )
    assert correct_roots(squares).tolist() == [math.sqrt(square) for square in squares.tolist()]


@pytest.mark.parametrize("at_once", [1, 6, 131_072])
def test_powers_of_two_and_scaled_rows(at_once, monkeypatch):
    monkeypatch.setattr(sums, "ENTRIES_AT_ONCE", at_once)
    exponents = torch.arange(-1022, 1024)
    assert power_of_two(exponents).tolist() == [2.0**e for e in exponents.tolist()]
    rows = torch.tensor([[3.0, -1e-40], [1e-45, 0.0], [3e38, 1.0], [0.0, -0.0]])
    scaled, exponent = scale_rows(rows)
    assert torch.equal(scaled * power_of_two(exponent)[:, None], rows.double())
    assert ((scaled.abs().amax(1) >= 0.5) & (scaled.abs().amax(1) < 1))[:3].all()


@pytest.mark.parametrize("size", [1, 4, 32])
def test_a_product_does_not_depend_on_its_neighbours(size):
    x, blocks = torch.randn(40, 32, dtype=torch.float64), 1e-3 * torch.randn(32 // size, size, size)
    whole = exact_product(x, blocks)
    assert torch.equal(torch.cat([exact_product(row[None], blocks) for row in x]), whole)
    dense = torch.block_diag(*blocks.double())
    for i in (0, 7):
        for j in range(32):
            true = sum(Fraction(a) * Fraction(b) for a, b in zip(x[i].tolist(), dense[:, j].tolist(), strict=True))
            assert abs(Fraction(float(whole[i, j])) - true) <= Fraction(2) ** -58
