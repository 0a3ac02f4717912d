"""One class per structure; the checks stand in contracts/metric.py."""

import pytest
import torch
from contracts.metric import DIM, MetricContract
from torch import Tensor

from gssf_plug.metric.structures import add_product, coarsen, neutral_blocks


def diagonal_reference(weight: Tensor) -> Tensor:
    matrix = torch.zeros(DIM, DIM, dtype=torch.float64)
    for i in range(DIM):
        matrix[i, i] = weight[i]
    return matrix


def block_reference(weight: Tensor) -> Tensor:
    matrix = torch.zeros(DIM, DIM, dtype=torch.float64)
    count, size, _ = weight.shape
    for k in range(count):
        for i in range(size):
            for j in range(size):
                matrix[k * size + i, k * size + j] = weight[k, i, j]
    return matrix


class TestDiagonal(MetricContract):
    options = {"terms": ("diagonal",)}

    def reference_structure(self, parameters: dict[str, Tensor]) -> Tensor:
        return diagonal_reference(parameters["structures.diagonal.weight"])


class TestDiagonalPsd(TestDiagonal):
    options = {"terms": ("diagonal",), "constraint": "psd"}


class TestBlockDiagonal(MetricContract):
    options = {"terms": ("block_diagonal",), "block_size": 4}

    def reference_structure(self, parameters: dict[str, Tensor]) -> Tensor:
        return block_reference(parameters["structures.block_diagonal.weight"])


class TestBlockDiagonalSymmetric(TestBlockDiagonal):
    options = {"terms": ("block_diagonal",), "block_size": 4, "constraint": "symmetric"}


class TestBoth(MetricContract):
    options = {"terms": ("diagonal", "block_diagonal"), "block_size": 3}

    def reference_structure(self, parameters: dict[str, Tensor]) -> Tensor:
        blocks = block_reference(parameters["structures.block_diagonal.weight"])
        return blocks + diagonal_reference(parameters["structures.diagonal.weight"])


class TestBothPsd(TestBoth):
    options = {"terms": ("diagonal", "block_diagonal"), "block_size": 3, "constraint": "psd"}


class TestBothSymmetric(TestBoth):
    options = {"terms": ("diagonal", "block_diagonal"), "block_size": 6, "constraint": "symmetric"}


class TestBothGrouped(TestBoth):
    options = {"block_size": 4, "grouping": torch.randperm(DIM, generator=torch.Generator().manual_seed(7))}


class TestBothGroupedPsd(TestBoth):
    options = {"block_size": 4, "constraint": "psd", "grouping": torch.arange(DIM).roll(5)}


class TestDense(MetricContract):
    options = {"terms": ("dense",)}

    def reference_structure(self, parameters: dict[str, Tensor]) -> Tensor:
        return block_reference(parameters["structures.dense.weight"])


class TestAllTerms(TestBoth):
    options = {"terms": ("dense", "diagonal", "block_diagonal"), "block_size": 4}

    def reference_structure(self, parameters: dict[str, Tensor]) -> Tensor:
        return super().reference_structure(parameters) + block_reference(parameters["structures.dense.weight"])


class TestAdjacency(MetricContract):
    """A band: every channel meets its two neighbours."""

    options = {"adjacency": (torch.arange(DIM)[:, None] - torch.arange(DIM)).abs() <= 1}

    def reference_structure(self, parameters: dict[str, Tensor]) -> Tensor:
        matrix = parameters["structures.adjacency.weight"].clone()
        for i in range(DIM):
            for j in range(DIM):
                if not self.options["adjacency"][i, j]:
                    matrix[i, j] = 0
        return matrix

    def acting(self, name: str, parameter: Tensor) -> Tensor:
        return self.options["adjacency"]


class TestAdjacencySymmetric(TestAdjacency):
    options = {**TestAdjacency.options, "constraint": "symmetric"}


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16, 48])
@pytest.mark.parametrize("rows", [(), (1,), (5, 3), (9, 8)])
def test_add_product_follows_its_formula(size: int, rows: tuple[int, ...]) -> None:
    """Few rows and many, blocks that are widened and blocks that are not."""
    y, x, blocks = torch.randn(*rows, 48), torch.randn(*rows, 48), torch.randn(48 // size, size, size)
    torch.testing.assert_close(add_product(y, x, blocks), y + x @ torch.block_diag(*blocks))
    assert torch.equal(add_product(y, x, torch.zeros_like(blocks)), y)


def test_coarsen_keeps_the_matrix() -> None:
    blocks = torch.randn(6, 2, 2)
    for size in (2, 4, 12):
        coarse = coarsen(blocks, size)
        assert coarse.shape == (12 // size, size, size)
        torch.testing.assert_close(torch.block_diag(*coarse), torch.block_diag(*blocks))


def test_neutral_blocks_are_identities() -> None:
    assert torch.equal(torch.block_diag(*neutral_blocks(torch.randn(3, 4, 4))), torch.eye(12))
