"""Channels that depend on each other across the two sides end up in one block."""

from itertools import permutations

import pytest
import torch

from gssf_plug import GSSFMetric
from gssf_plug.errors import ArgumentError
from gssf_plug.metric import group_channels
from gssf_plug.metric.grouping import _greedy, _swapped


def planted(blocks=6, size=4, pairs=4000, noise=0.5):
    """Each side's channels are mixed inside hidden groups of channels, scattered over the features."""
    dim = blocks * size
    hidden = torch.randperm(dim)
    rotations = torch.block_diag(*[torch.linalg.qr(torch.randn(size, size))[0] for _ in range(blocks)])
    x = torch.randn(pairs, dim)
    y = torch.empty_like(x)
    y[:, hidden] = x[:, hidden] @ rotations
    return x, y + noise * torch.randn_like(y), hidden.reshape(blocks, size)


def groups(permutation, size):
    return {frozenset(block.tolist()) for block in permutation.reshape(-1, size)}


@pytest.mark.parametrize(("blocks", "size"), [(6, 4), (2, 16), (16, 2)])
def test_finds_planted_groups(blocks, size):
    x, y, hidden = planted(blocks, size)
    assert groups(group_channels(x, y, size), size) == groups(hidden, size)


def test_a_metric_in_these_groups_separates_better_than_in_contiguous_ones():
    x, y, _ = planted()

    def trained(grouping):
        torch.manual_seed(1)
        metric = GSSFMetric(24, block_size=4, grouping=grouping)
        optimizer = torch.optim.Adam(metric.parameters(), lr=0.05)
        for _ in range(60):
            loss = torch.nn.functional.cross_entropy(10 * metric(x[:256], y[:256]), torch.arange(256))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        scores = metric(x[1000:1500], y[1000:1500])
        return (scores.argmax(1) == torch.arange(500)).double().mean()

    assert trained(group_channels(x[500:1000], y[500:1000], 4)) > trained(None) + 0.3


def test_is_a_canonical_permutation_and_repeats():
    x, y, _ = planted()
    found = group_channels(x, y, 4)
    assert torch.equal(found.sort().values, torch.arange(24))
    rows = found.reshape(-1, 4)
    assert bool((rows.diff(dim=1) > 0).all())
    assert bool((rows[:, 0].diff() > 0).all())
    assert torch.equal(found, group_channels(x, y, 4))
    assert torch.equal(found, group_channels(3 * x, 0.1 * y, 4))  # directions alone count


def test_swaps_reach_the_best_grouping_of_a_small_case():
    affinity = torch.rand(6, 6, dtype=torch.float64)
    affinity = (affinity + affinity.T).fill_diagonal_(0)

    def inside(members):
        return sum(float(affinity[block][:, block].sum()) for block in members)

    best = max(inside(torch.tensor(order).reshape(3, 2)) for order in permutations(range(6)))
    start = _greedy(affinity, 2)
    end = _swapped(affinity, start, 100)
    assert inside(start) <= inside(end) <= best + 1e-12
    for first in range(6):  # no exchange of two channels is left that gains
        for second in range(6):
            other = end.flatten().clone()
            places = [int((other == channel).nonzero()) for channel in (first, second)]
            other[places] = other[places[::-1]]
            assert inside(other.reshape(3, 2)) <= inside(end) + 1e-9


def test_constant_channels_and_few_pairs_are_no_trouble():
    x = torch.randn(3, 8)
    x[:, 2] = 0
    assert torch.equal(group_channels(x, x, 4).sort().values, torch.arange(8))
    assert torch.equal(group_channels(torch.ones(5, 8), torch.ones(5, 8), 4).sort().values, torch.arange(8))


@pytest.mark.bad_input
class TestBadInput:
    def test_shapes(self):
        with pytest.raises(ArgumentError, match=r"`y` must have the shape of `x`.*got \(5, 8\) and \(4, 8\)"):
            group_channels(torch.randn(5, 8), torch.randn(4, 8), 4)

    def test_one_pair(self):
        with pytest.raises(ArgumentError, match="`x` must hold at least two pairs, but got 1"):
            group_channels(torch.randn(1, 8), torch.randn(1, 8), 4)

    def test_block(self):
        with pytest.raises(ArgumentError, match="`block_size` must divide dim=8, but got 3"):
            group_channels(torch.randn(5, 8), torch.randn(5, 8), 3)

    def test_nan(self):
        y = torch.randn(5, 8)
        y[3, 1] = float("nan")
        with pytest.raises(ArgumentError, match="`y` must be finite, but got NaN or infinity in row 3"):
            group_channels(torch.randn(5, 8), y, 4)
