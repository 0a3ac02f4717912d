"""Rows in a short dtype: `rest` bounds how far each is from the row that it stands for, whatever the features are."""

import pytest
import torch

from gssf_plug.metric.exact import fast_rows as module
from gssf_plug.metric.exact.fast_rows import fast_rows, given_rows, multiplies_int8, short_dtypes, whole_numbers

DIM, ROWS = 24, 300
KINDS = {
    "random": lambda: torch.randn(ROWS, DIM),
    "half": lambda: torch.randn(ROWS, DIM).half(),
    "double": lambda: torch.randn(ROWS, DIM).double(),
    "signs": lambda: torch.randn(ROWS, DIM).sign(),
    "heavy tails": lambda: torch.randn(ROWS, DIM) / torch.rand(ROWS, DIM).clamp_min(1e-6),
    "one huge channel": lambda: torch.randn(ROWS, DIM) * torch.tensor([1e6] + [1.0] * (DIM - 1)),
    "some zero rows": lambda: torch.randn(ROWS, DIM) * (torch.rand(ROWS, 1) < 0.7),
    "subnormal": lambda: torch.randint(-3, 4, (ROWS, DIM)) * 2.0**-149,
    "huge": lambda: 1e38 * torch.rand(ROWS, DIM),
    "lengths from 1e-12 to 1e12": lambda: torch.randn(ROWS, DIM) * 10.0 ** torch.randint(-12, 13, (ROWS, 1)),
}
DTYPES = [torch.int8, torch.bfloat16, torch.float16, torch.float32]


def stood_for(features, normalize, exponent):
    rows = features.double() * 2.0 ** -max(-1000, min(1000, exponent))
    if not normalize:
        return rows
    rows = features.double() / features.double().abs().amax(1, keepdim=True).clamp_min(5e-324)
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / norms.masked_fill(norms == 0, 1.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_no_row_is_farther_or_longer_than_said(kind, normalize, dtype):
    features = KINDS[kind]()
    for rows in (given_rows(features, normalize), fast_rows(features, normalize, torch.float32)):
        if dtype == torch.float16 and not normalize:
            continue  # raw rows may leave its range
        short = rows.to(dtype)
        assert short.rows.dtype == dtype
        values = short.rows.double() * (1.0 if short.factors is None else short.factors.double()[:, None])
        away = torch.linalg.vector_norm(values - stood_for(features, normalize, short.exponent), dim=1)
        assert bool((away <= short.rest).all())
        assert bool((torch.linalg.vector_norm(values, dim=1) <= short.norm + short.rest).all())


def test_the_bound_of_whole_numbers_is_narrow():
    """Some one percent of unit rows whose entries are alike, of which half is measured, and no row does its worst."""
    features = torch.randn(1000, 512)
    rows = given_rows(features, True).to(torch.int8)
    assert 0.005 < rows.rest < 0.02
    worst = features.abs().amax(1) / 127 / 2 * 512**0.5 / features.norm(dim=1)
    assert rows.rest < float(worst.max()) * 0.7


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["random", "signs", "heavy tails", "some zero rows", "lengths from 1e-12 to 1e12"])
def test_whole_numbers_and_what_is_left(kind, dtype):
    values = KINDS[kind]().to(dtype)
    rows, steps, rests = whole_numbers(values)
    assert rows.dtype == torch.int8
    assert rows.abs().max() == 127
    left = torch.linalg.vector_norm(values.double() - rows.double() * steps.double()[:, None], dim=1)
    torch.testing.assert_close(rests.double(), left, rtol=1e-3, atol=float(values.norm(dim=1).max()) * 1e-7)
    assert bool((left <= steps.double() * (0.501 * DIM**0.5)).all())
    assert not bool(rows[values.abs().amax(1) == 0].any())


def test_sums_that_overflow_sixteen_bits_are_no_instructions(monkeypatch):
    """oneDNN without its int8 instructions adds pairs of products in 16 bits: then int8 is left alone."""
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    exact = lambda a, b: a.int() @ b.int()  # noqa: E731
    monkeypatch.setattr(torch, "_int_mm", exact)
    assert multiplies_int8.__wrapped__()
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: exact(a, b).clamp(max=32767))
    assert not multiplies_int8.__wrapped__()
    monkeypatch.setattr(torch, "_int_mm", exact)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert not multiplies_int8.__wrapped__()


def test_short_dtypes_come_from_the_longest_to_the_shortest(monkeypatch):
    cpu = torch.device("cpu")
    for floats, ints, right in (
        (torch.bfloat16, True, (torch.bfloat16, torch.int8)),
        (torch.float32, True, (torch.int8,)),
        (torch.bfloat16, False, (torch.bfloat16,)),
        (torch.float32, False, ()),
    ):
        monkeypatch.setattr(module, "fast_dtype", lambda device, floats=floats: floats)
        monkeypatch.setattr(module, "multiplies_int8", lambda ints=ints: ints)
        assert short_dtypes(cpu) == right
        assert short_dtypes(torch.device("cuda")) == ()
