"""Products of chosen pairs, by sampling and by gathering, beside the product of all pairs."""

import pytest
import torch

from gssf_plug.metric.exact import pair_products as module
from gssf_plug.metric.exact.pair_products import ascending, converted_products, pair_products
from gssf_plug.metric.exact.sums import scale_rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pairs", [0, 1, 7, 1500, 3000])
@pytest.mark.parametrize("sampled", [True, False])
def test_equals_the_product_of_all_pairs(dtype, pairs, sampled, monkeypatch):
    if not sampled:
        monkeypatch.setattr(module, "_samples", lambda device: False)
    queries, items = torch.randn(20, 33, dtype=dtype), torch.randn(90, 33, dtype=dtype)
    rows, columns = torch.randint(20, (pairs,)), torch.randint(90, (pairs,))  # in no order, some twice
    right = (queries.double() @ items.double().T)[rows, columns]
    got = pair_products(queries, rows, items, columns)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), right, rtol=0, atol=1e-4 if dtype == torch.float32 else 1e-13)


@pytest.mark.parametrize("most", [9, 1 << 16, 1 << 40])
def test_ascending_sorts_whole_numbers_of_every_size(most):
    numbers = torch.randint(most, (500,))
    assert torch.equal(numbers[ascending(numbers)], numbers.sort().values)


def test_many_items_are_sorted_by_comparison(monkeypatch):
    monkeypatch.setattr(module, "SHORT", 10)
    queries, items = torch.randn(20, 8), torch.randn(90, 8)
    rows, columns = torch.randint(20, (1500,)), torch.randint(90, (1500,))
    got = pair_products(queries, rows, items, columns)
    torch.testing.assert_close(got, (queries @ items.T)[rows, columns])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_many_queries_are_read_by_blocks_of_items(monkeypatch, dtype):
    monkeypatch.setattr(module, "CACHED", 100)  # 12 items
    monkeypatch.setattr(module, "PAIRS_OF_BLOCK", 20)
    monkeypatch.setattr(module, "FEW_PAIRS", 20)
    blocks, sampled = [], module._sampled
    monkeypatch.setattr(module, "_sampled", lambda *given: blocks.append(len(given[2])) or sampled(*given))
    queries, items = torch.randn(60, 8, dtype=dtype), torch.randn(90, 8, dtype=dtype)
    rows, columns = torch.randint(60, (5000,)).sort().values, torch.randint(90, (5000,))
    columns[columns.div(12, rounding_mode="floor") == 3] = 0  # one block without a pair, one with more than torch takes
    got = pair_products(queries, rows, items, columns)
    assert set(blocks) == {12, 6}
    torch.testing.assert_close(got, (queries @ items.T)[rows, columns])


def test_what_memory_held_before_does_not_show():
    queries, items = torch.randn(20, 8), torch.randn(90, 8)
    rows, columns = torch.randint(20, (1500,)), torch.randint(90, (1500,))
    for _ in range(20):
        torch.full((1500,), float("nan"))  # given back at once, and found by what is allocated next
        assert pair_products(queries, rows, items, columns).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("pairs", [0, 7, 3000])
@pytest.mark.parametrize("at_once", [100, 524_288])
@pytest.mark.parametrize(("precise", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-4)])
def test_products_of_any_items(dtype, pairs, at_once, precise, tolerance, monkeypatch):
    monkeypatch.setattr(module, "CONVERTED_AT_ONCE", at_once)
    monkeypatch.setattr(module, "ENTRIES_AT_ONCE", at_once)
    queries, items = torch.randn(20, 33).to(precise), torch.randn(90, 33).to(dtype)
    rows, columns = torch.randint(20, (pairs,)), torch.randint(90, (pairs,))
    right = (queries.double() @ items.double().T)[rows, columns]
    got = converted_products(queries, rows, items, columns)
    assert got.dtype == precise
    torch.testing.assert_close(got.double(), right, rtol=0, atol=tolerance)


@pytest.mark.parametrize("pairs", [7, 3000])
def test_scaled_items_do_not_overflow(pairs):
    queries, items = torch.randn(20, 33).double(), torch.randn(90, 33).double() * 1e300
    rows, columns = torch.randint(20, (pairs,)), torch.randint(90, (pairs,))
    right = (queries @ scale_rows(items)[0].T)[rows, columns]
    got = converted_products(queries, rows, items, columns, scaled=True)
    torch.testing.assert_close(got, right, rtol=0, atol=1e-13)
