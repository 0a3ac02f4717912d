"""The fast product: how far it is from canonical scores, and how its sides are made."""

import math
from dataclasses import replace

import pytest
import torch
from metric.scored import DIM, FEATURES, all_pairs, canonical, perturbed

from gssf_plug.metric.exact.canonical import canonical_queries
from gssf_plug.metric.exact.fast_rows import FastRows, fast_dtype, fast_rows, given_rows, pair_rows, plain_rows
from gssf_plug.metric.exact.fast_scores import fast_queries
from gssf_plug.metric.exact_scores import ExactScores

DTYPES = [torch.bfloat16, torch.float32, torch.float64]


def test_a_lower_precision_of_float32_products_widens_the_bound():
    queries, gallery = torch.randn(5, DIM), torch.randn(9, DIM)
    part = ExactScores(None, gallery, dtype=torch.float32).chunk(queries)
    before = part.fast.margins(part.items)
    torch.set_float32_matmul_precision("medium")
    try:
        assert (part.fast.margins(part.items) > 100 * before).all()
    finally:
        torch.set_float32_matmul_precision("highest")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert part.product().dtype == torch.float32


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("kind", FEATURES)
def test_canonical_scores_lie_between_the_bounds_of_every_road(kind, normalize):
    """The product of all pairs, that of a few queries, single pairs, a part, and rows brought to another dtype."""
    metric, queries, gallery = perturbed(block_size=4, normalize=normalize), FEATURES[kind](5), FEATURES[kind](30)
    right, sides = canonical(metric, queries, gallery), canonical_queries(metric, queries)
    for dtype in DTYPES:
        fast, items = fast_queries(sides, dtype), fast_rows(gallery, normalize, dtype)
        roads = [(items, slice(0, 30)), (items.part(slice(7, 19)), slice(7, 19))]
        roads.append((fast_rows(gallery, normalize, torch.float32).to(dtype), slice(0, 30)))
        if dtype == torch.float32:
            roads.append((given_rows(gallery, normalize), slice(0, 30)))
        for rows, columns in roads:
            low, high = fast.between(fast.product(rows), fast.margins(rows)[:, None], rows)
            assert ((low <= right[:, columns]) & (right[:, columns] <= high)).all()
    fast, items = fast_queries(sides, torch.float32), pair_rows(gallery, normalize)
    rows, columns = all_pairs(5, 30)
    low, high = fast.between(fast.pairs(rows, items, columns), fast.margins(items)[rows], items)
    assert ((low <= right[rows, columns]) & (right[rows, columns] <= high)).all()


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_pairs_and_products_of_rows_as_they_were_given(dtype, normalize):
    """Rows that nothing was converted of, with factors that keep their precision."""
    metric, queries = perturbed(block_size=4, normalize=normalize), torch.randn(5, DIM)
    gallery = (torch.randn(30, DIM) * 3).to(dtype)
    right, sides = canonical(metric, queries, gallery), canonical_queries(metric, queries)
    items = replace(plain_rows(gallery, normalize), rows=gallery)
    fast, (rows, columns) = fast_queries(sides, torch.float32), all_pairs(5, 30)
    low, high = fast.between(fast.pairs(rows, items, columns), fast.margins(items, of_pairs=True)[rows], items)
    assert ((low <= right[rows, columns]) & (right[rows, columns] <= high)).all()
    assert (high - low).max() < 1e-4 * right.abs().max()
    for short in DTYPES:
        fast, converted = fast_queries(sides, short), items.to(short)
        low, high = fast.between(fast.product(converted), fast.margins(converted)[:, None], converted)
        assert ((low <= right) & (right <= high)).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_product_that_is_rounded_as_far_as_can_be(dtype):
    half = torch.finfo(dtype).eps / 2  # just beyond the middle between two neighbours
    items = FastRows(torch.tensor([[1.0, half * (1 + 4 * half)]], dtype=dtype), 0, 1.01, 0.0)
    fast = replace(fast_queries(canonical_queries(None, torch.ones(1, 2)), dtype), rows=torch.ones(1, 2, dtype=dtype))
    product, right = fast.product(items), items.rows.double().sum()
    assert float(product) == 1 + 2 * half
    low, high = fast.between(product, fast.margins(items), items)
    assert low <= right <= high
    assert fast.around(right[None, None], items).high >= product


@pytest.mark.parametrize("dtype", DTYPES)
def test_bounds_around_a_value_leave_no_decision_to_rounding(dtype):
    queries, gallery = torch.randn(5, DIM), torch.randn(30, DIM)
    right, sides = canonical(None, queries, gallery), canonical_queries(None, queries)
    fast, items = fast_queries(sides, dtype), fast_rows(gallery, True, dtype)
    product, values = fast.product(items), right[:, ::3]
    low, high = fast.around(values, items)
    assert low.dtype == product.dtype
    for below, above, value in zip(low.T, high.T, values.T, strict=True):
        assert (right < value[:, None])[product < below[:, None]].all()
        assert (right > value[:, None])[product > above[:, None]].all()
    none = torch.full((5, 2), math.inf, dtype=torch.float64)  # as where a row has no positive
    for sign in (1, -1):
        low, high = fast.around(sign * none, items)
        assert torch.equal(low, sign * none.to(dtype))
        assert torch.equal(high, sign * none.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_norm_and_rest_say_how_long_rows_are_and_how_far_off(dtype):
    gallery = torch.randn(40, DIM)
    items = fast_rows(gallery, True, dtype)
    exact = torch.nn.functional.normalize(gallery.double())
    assert (items.rows.double() - exact).norm(dim=1).max() <= items.rest
    assert items.rows.double().norm(dim=1).max() <= items.norm
    assert items.rest < {torch.bfloat16: 2**-8, torch.float32: 2**-18, torch.float64: 2**-40}[dtype]


def test_rows_as_given_divide_their_scores_instead_of_themselves():
    gallery = 3 * torch.randn(40, DIM)
    few, many = given_rows(gallery, True), fast_rows(gallery, True, torch.float32)
    assert many.factors is None
    assert few.rows.data_ptr() == gallery.data_ptr()  # nothing was copied
    torch.testing.assert_close(few.rows * few.factors[:, None], many.rows)
    assert torch.equal(few.part(slice(3, 9)).factors, few.factors[3:9])


def test_raw_features_of_any_size_are_kept_in_range_by_one_power_of_two():
    for scale in (1e-30, 1.0, 1e30):
        items = fast_rows(scale * torch.randn(9, DIM), False, torch.bfloat16)
        assert (items.exponent == 0) == (scale == 1.0)
        assert 2**-31 < items.norm < 2**31


def test_what_is_not_finite_shows_in_the_rest():
    gallery = torch.randn(9, DIM)
    gallery[4, 2] = math.nan
    for dtype in DTYPES:
        assert not fast_rows(gallery, True, dtype).rest < math.inf


def test_rows_stay_where_their_dtype_is_asked_for():
    items = FastRows(torch.randn(3, DIM), 0, 1.0, 0.0)
    assert items.to(torch.float32) is items
    assert items.to(torch.bfloat16).rest > 0
    assert items.to(torch.float64).rest < 1e-200


def test_the_dtype_of_a_cpu_follows_its_instructions(monkeypatch):
    for has, may in ((True, True), (True, False), (False, True)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=has: has)
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda may=may: may)
        assert fast_dtype(torch.device("cpu")) == (torch.bfloat16 if has and may else torch.float32)
    assert fast_dtype(torch.device("cuda")) == torch.float32
