"""The parts of a score by blocks: exact, in the order of the grouping, cosine's for a neutral metric."""

import numpy as np
import pytest
import torch

from gssf_plug import GSSFMetric
from gssf_plug.errors import ArgumentError
from gssf_plug.metric import block_contributions

DIM = 12
KINDS = {
    "diagonal": ({"terms": ("diagonal",)}, 1),
    "both": ({"block_size": 4}, 4),
    "grouped": ({"block_size": 4, "grouping": torch.randperm(DIM, generator=torch.Generator().manual_seed(3))}, 4),
    "symmetric": ({"block_size": 3, "constraint": "symmetric"}, 3),
    "psd": ({"block_size": 4, "constraint": "psd"}, 4),
    "raw": ({"block_size": 4, "normalize": False}, 4),
    "dense": ({"terms": ("dense",)}, DIM),
    "adjacency": ({"adjacency": torch.eye(DIM, dtype=torch.bool) | (torch.arange(DIM) % 2 == 0)}, DIM),
}


def perturbed(**options: object) -> GSSFMetric:
    metric = GSSFMetric(DIM, **options).double()
    with torch.no_grad():
        for parameter in metric.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.5)
    return metric


@pytest.mark.parametrize("kind", KINDS)
def test_each_part_is_the_product_of_its_block(kind: str) -> None:
    options, size = KINDS[kind]
    metric = perturbed(**options)
    x, y = torch.randn(5, DIM).double(), torch.randn(5, DIM).double()
    parts = block_contributions(metric, x, y)
    order = torch.arange(DIM) if metric.grouping is None else metric.grouping
    matrix = metric.matrix()
    if metric.normalize:
        x, y = x / x.norm(dim=-1, keepdim=True), y / y.norm(dim=-1, keepdim=True)
    for block in range(DIM // size):
        channels = order[block * size : (block + 1) * size]
        naive = [x[n, channels] @ matrix[channels][:, channels] @ y[n, channels] for n in range(5)]
        torch.testing.assert_close(parts[:, block], torch.stack(naive))
    assert parts.shape == (5, DIM // size)


def test_one_query_against_many_items_adds_up_to_the_scores() -> None:
    metric = perturbed(block_size=4)
    query, items = torch.randn(DIM).double(), torch.randn(7, DIM).double()
    parts = block_contributions(metric, query, items)
    torch.testing.assert_close(parts.sum(-1), metric(query[None], items)[0])
    assert not torch.allclose(parts, block_contributions(GSSFMetric(DIM, block_size=4).double(), query, items))


def test_pruned_blocks_keep_their_place() -> None:
    metric = perturbed(terms=("block_diagonal",), block_size=4)
    metric.structures["block_diagonal"].weight.data[1] = torch.eye(4)
    metric.prune(1e-9)
    x = torch.randn(DIM).double()
    unit = x / x.norm()
    torch.testing.assert_close(block_contributions(metric, x, x)[1], unit[4:8] @ unit[4:8])


@pytest.mark.bad_input
def test_another_width_is_refused() -> None:
    with pytest.raises(ArgumentError, match="`items` must have 12 channels"):
        block_contributions(GSSFMetric(DIM, block_size=4), torch.randn(2, DIM), torch.randn(2, 8))


@pytest.mark.bad_input
def test_rows_that_do_not_suit_each_other_are_refused() -> None:
    metric, x = GSSFMetric(DIM, block_size=4), torch.randn(6, DIM)
    with pytest.raises(ArgumentError, match="`items` must have leading dimensions that suit those of `queries`"):
        block_contributions(metric, x, x[:0])
    assert block_contributions(metric, x[:0], x[:0]).shape == (0, DIM // 4)


def test_arrays_give_arrays() -> None:
    x = np.random.default_rng(0).standard_normal((6, DIM)).astype(np.float32)
    parts = block_contributions(GSSFMetric(DIM, block_size=4), x, x)
    assert isinstance(parts, np.ndarray)
    assert parts.shape == (6, DIM // 4)
