"""Rows as whole numbers: sums beside exact ones, and bounds that no canonical score breaks."""

import pytest
import torch
from metric.exact.test_fast_rows import KINDS, ROWS, stood_for
from metric.scored import sum_exactly

from gssf_plug.metric.exact.canonical import canonical_queries
from gssf_plug.metric.exact.fast_rows import fast_rows, given_rows
from gssf_plug.metric.exact.reaching import GROUP
from gssf_plug.metric.exact.whole_numbers import HIDDEN, multiplies_int8, whole_queries, whole_rows


def of_each(values):
    return values.repeat_interleave(GROUP)[:ROWS]


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_no_row_is_farther_or_longer_than_said(kind, normalize):
    features = KINDS[kind]()
    for items in (given_rows(features, normalize), fast_rows(features, normalize, torch.float32)):
        whole = whole_rows(items)
        assert (len(whole.rows), whole.padded) == (ROWS, 320)
        right = stood_for(features, normalize, whole.exponent)
        away = torch.linalg.vector_norm(whole.rows.double() * of_each(whole.steps)[:, None] - right, dim=1)
        assert bool((away <= of_each(whole.rests)).all())
        assert bool((torch.linalg.vector_norm(right, dim=1) <= whole.norm).all())


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_no_query_is_farther_or_longer_than_said(kind, normalize):
    queries = canonical_queries(None, KINDS[kind]())
    whole = whole_queries(queries)
    exact = queries.folded * (queries.factors * 2.0**-whole.exponent)[:, None]
    stands = whole.rows.double() * whole.steps[:, None]
    assert bool((torch.linalg.vector_norm(stands - exact, dim=1) <= whole.rests).all())
    assert bool((torch.linalg.vector_norm(stands, dim=1) <= whole.norms).all())
    assert torch.equal(whole.part(slice(3, 9)).rests, whole.rests[3:9])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_default_dtype_changes_nothing(dtype):
    features = torch.randn(200, 64)
    right = whole_rows(given_rows(features, True))
    torch.set_default_dtype(dtype)
    try:
        found = whole_rows(given_rows(features, True))
    finally:
        torch.set_default_dtype(torch.float32)
    for name in ("rows", "steps", "rests"):
        assert torch.equal(getattr(found, name), getattr(right, name)), name


def test_the_bound_is_narrow():
    """Some one percent of unit rows whose entries are alike, of which half is measured, and no row does its worst."""
    features = torch.randn(1000, 512)
    rests = whole_rows(given_rows(features, True)).rests
    assert bool(((rests > 0.005) & (rests < 0.02)).all())
    assert float(rests.max()) < float((features.abs().amax(1) / 127 / 2 * 512**0.5 / features.norm(dim=1)).max()) * 0.8


def test_one_channel_that_stands_out_makes_its_own_group_coarse_alone():
    features = torch.randn(640, 64)
    plain = whole_rows(given_rows(features, True)).rests
    features[70, 0] = 100.0
    rests = whole_rows(given_rows(features, True)).rests
    assert rests[1] > 2 * plain[1]
    assert torch.equal(rests[2:], plain[2:])


def test_sums_and_what_they_must_reach(monkeypatch):
    sum_exactly(monkeypatch)
    features, items = torch.randn(7, 24), given_rows(torch.randn(100, 24), True)
    queries, rows = whole_queries(canonical_queries(None, features)), whole_rows(items)
    sums = queries.sums(rows, torch.empty(7, 128, dtype=torch.int32))
    assert torch.equal(sums[:, :100], queries.rows.int() @ rows.rows.int().T)
    assert bool((sums[:, 100:] == HIDDEN).all())
    for value, bound in ((-torch.inf, HIDDEN + 1), (1e300, -HIDDEN - 1)):
        assert bool((queries.least(torch.full((7,), value, dtype=torch.float64), rows) == bound).all())
    values = torch.linspace(-1, 1, 7).double()
    least, steps = queries.least(values, rows), queries.steps[:, None] * rows.steps
    margins = queries.rests[:, None] * rows.norm + queries.norms[:, None] * rows.rests
    away = (values[:, None] - margins) / steps - least
    assert bool(((away >= -1e-6) & (away < 1)).all())


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
