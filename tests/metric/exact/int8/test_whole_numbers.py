"""Rows as whole numbers: sums beside exact ones, and bounds that no canonical score breaks."""

import pytest
import torch
from metric.exact.test_fast_rows import KINDS, ROWS, stood_for
from metric.scored import canonical, sum_exactly

from gssf_plug.metric.exact.canonical import canonical_queries
from gssf_plug.metric.exact.fast_rows import fast_rows, given_rows
from gssf_plug.metric.exact.int8 import whole_numbers
from gssf_plug.metric.exact.int8.whole_numbers import HIDDEN, Shared, multiplies_int8, shared, whole_queries, whole_rows
from gssf_plug.metric.exact.reaching import GROUP


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
        assert bool((torch.linalg.vector_norm(right, dim=1) <= of_each(whole.norms)).all())


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


def directions(features):
    """What features have in common by `shared`, and directions that they do not have in common at all."""
    unit = torch.nn.functional.normalize(torch.randn(features.shape[1]), dim=0)
    found = shared(fast_rows(features, True, torch.float32))
    return [one for one in (found, Shared(unit, 0.7, 3), Shared(1.01 * unit, -0.2, 16)) if one is not None]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_shared_is_taken_out_within_the_bounds(kind):
    features = KINDS[kind]()
    right = stood_for(features, True, 0)
    for items in (given_rows(features, True), fast_rows(features, True, torch.float32)):
        for common in directions(features):
            whole, m = whole_rows(items, common=common), common.direction.double()
            u = right @ m
            wide = torch.cat([right - u[:, None] * m, (u - common.along)[:, None].expand(-1, common.channels)], dim=1)
            away = torch.linalg.vector_norm(whole.rows.double() * of_each(whole.steps)[:, None] - wide, dim=1)
            assert bool((away <= of_each(whole.rests)).all())
            assert bool((torch.linalg.vector_norm(wide, dim=1) <= of_each(whole.norms)).all())


@pytest.mark.parametrize("kind", KINDS)
def test_canonical_scores_lie_within_the_bounds_of_what_is_left(kind, monkeypatch):
    sum_exactly(monkeypatch)
    features, gallery = KINDS[kind]()[:40], KINDS[kind]()
    queries, items = canonical_queries(None, features), given_rows(gallery, True)
    right = canonical(None, features, gallery)
    for common in directions(gallery):
        asked, rows = whole_queries(queries, common), whole_rows(items, common=common)
        sums = asked.sums(rows, torch.empty(len(features), rows.padded, dtype=torch.int32))
        low = asked.scores(sums, rows, surely=True)[:, :ROWS]
        assert bool((low <= right).all())
        for column in (0, 17, ROWS - 1):
            least = asked.least(right[:, column], rows)[:, column // GROUP]
            assert bool((sums[:, column] >= least).all())
            surely = asked.surely(right[:, column], rows)[:, column // GROUP]
            assert bool((sums[:, column] <= surely + 1).all())


def test_rows_that_share_a_direction_are_known_as_well_as_others():
    """In shares of how far their scores spread; without the direction taken out, five times as coarsely."""
    apart = torch.randn(1000, 512)
    features = 0.05**0.5 * apart + 0.95**0.5 * torch.randn(1, 512)
    found = {}
    for name, rows, common in (
        ("apart", apart, None),
        ("left in", features, None),
        ("taken out", features, shared(given_rows(features, True))),
    ):
        queries, items = whole_queries(canonical_queries(None, rows[:50]), common), given_rows(rows, True)
        whole = whole_rows(items, common=common)
        margin = queries.rests.mean() * whole.norms.mean() + queries.norms.mean() * whole.rests.mean()
        unit = torch.nn.functional.normalize(rows.double())
        found[name] = float(margin / (unit[:50] @ unit[50:].T).std())
    assert found["taken out"] < 1.5 * found["apart"]
    assert found["left in"] > 5 * found["taken out"]


def test_what_is_shared_is_found_where_it_is_much():
    features, direction = torch.randn(5000, 64), torch.nn.functional.normalize(torch.randn(64), dim=0)
    assert shared(given_rows(features, True)) is None
    assert shared(given_rows(features[:63] + 20 * direction, True)) is None  # too few to tell
    for items in (
        given_rows(features + 20 * direction, True),
        fast_rows(features + 20 * direction, True, torch.float32),
    ):
        before = items.rows.clone()
        found = shared(items)
        assert torch.equal(items.rows, before)
        assert float(found.direction @ direction) > 0.999
        assert abs(found.along - 20 / (20**2 + 64) ** 0.5) < 0.01
        assert (found.channels, found.direction.dtype) == (16, torch.float32)
    assert shared(given_rows(torch.randn(1, 512) + 0.01 * torch.randn(500, 512), True)).channels == 256  # half as many


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
    margins = queries.rests[:, None] * rows.norms + queries.norms[:, None] * rows.rests
    away = (values[:, None] - margins) / steps - least
    assert bool(((away >= -1e-6) & (away < 1)).all())


def test_sums_that_overflow_sixteen_bits_are_no_instructions(monkeypatch):
    """oneDNN without its int8 instructions adds pairs of products in 16 bits: then int8 is left alone."""
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    exact = lambda a, b: a.int() @ b.int()  # noqa: E731
    monkeypatch.setattr(torch, "_int_mm", exact)
    assert whole_numbers._has_instructions.__wrapped__()
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: exact(a, b).clamp(max=32767))
    assert not whole_numbers._has_instructions.__wrapped__()
    monkeypatch.setattr(torch, "_int_mm", exact)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert not whole_numbers._has_instructions.__wrapped__()


def test_int8_is_left_alone_while_onednn_is_off(monkeypatch):
    """Its product without oneDNN is right, and twenty times slower than that of float32."""
    monkeypatch.setattr(whole_numbers, "_has_instructions", lambda: True)
    assert multiplies_int8()
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    assert not multiplies_int8()
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", True)
    assert multiplies_int8()
