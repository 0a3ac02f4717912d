"""1 process × 64 rows = 2 × 32 = 4 × 16, also in uneven parts, for every loss that looks across the batch.

Models with batch normalisation are exempt: statistics of a part are not those of the whole, and on CPU there is no
synchronised form of it.
"""

import pytest
import torch
from workers import retrieval_equality
from workers.launching import launch


def launched(folder, processes, precision="no"):
    launch("workers.retrieval_equality", folder, processes, precision)
    ranks = [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(processes)]
    assert [rank["processes"] for rank in ranks] == [processes] * processes
    return [rank["found"] for rank in ranks]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    (found,) = launched(tmp_path_factory.mktemp("alone"), 1)
    return found


def assert_same(gradients, right, tolerance):
    assert gradients.keys() == right.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, right[name], atol=tolerance, rtol=tolerance, msg=name)


def test_every_case_has_a_gradient_and_chunks_do_not_matter(alone):
    for (name, rows, _), case in alone.items():
        right = alone[name, rows, None]
        assert case["loss"] == pytest.approx(right["loss"], abs=1e-5)
        assert_same(case["gradients"], right["gradients"], 1e-5)
        if rows > 4:
            assert all(gradient.abs().max() > 1e-5 for gradient in right["gradients"].values()), name


@pytest.mark.parametrize("processes", [2, 4])
def test_many_processes_are_one(alone, tmp_path, processes):
    ranks = launched(tmp_path, processes)
    assert len(ranks[0]) == len(retrieval_equality.CASES) * len(retrieval_equality.ROWS) * 2 + 3
    for found in ranks:
        assert found.keys() == alone.keys()
        for key, case in found.items():
            assert case["loss"] == pytest.approx(alone[key]["loss"], abs=1e-5), key
            assert_same(case["gradients"], alone[key]["gradients"], 1e-5)
    parts = [found["InfoNCE", 61, None]["rows"] for found in ranks]
    assert sum(parts) == 61
    assert len(set(parts)) == 2


def test_chunks_in_mixed_precision_on_two_processes(tmp_path):
    """Bfloat16 rounds features; chunks and processes must not add to it."""
    ranks = launched(tmp_path, 2, "bf16")
    for found in ranks:
        for (name, rows, chunk_size), case in found.items():
            right = found[name, rows, None]
            assert case["loss"] == pytest.approx(right["loss"], rel=1e-4, abs=1e-5), (name, rows, chunk_size)
            for key, gradient in case["gradients"].items():
                difference = (gradient - right["gradients"][key]).norm()
                assert difference <= 0.02 * right["gradients"][key].norm() + 1e-5, (name, rows, chunk_size, key)
