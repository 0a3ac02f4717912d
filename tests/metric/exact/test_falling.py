"""Falling scores, sorted as numbers that carry their column, beside a stable sort."""

import os

import numpy as np
import pytest
import torch

from gssf_plug.metric.exact import falling as module
from gssf_plug.metric.exact.falling import largest, sort_in_blocks

ROWS, SIZE, APART = 40, 300, 1e-9


def kinds():
    random = torch.randn(ROWS, SIZE, dtype=torch.float64)
    copies = random[:, torch.randint(60, (SIZE,))]
    return {
        "random": random,
        "few": random[:, :2],
        "some taken out": random.masked_fill(torch.rand(ROWS, SIZE) < 0.3, float("-inf")),
        "rows taken out": random.masked_fill((torch.arange(ROWS) % 7 == 0)[:, None], float("-inf")),
        "all but one taken out": random.masked_fill(torch.arange(SIZE) != 5, float("-inf")),
        "rows of different range": random * 10.0 ** torch.arange(-250.0, 270, 13, dtype=torch.float64)[:, None],
        "one far above": torch.cat([random[:, 1:], torch.full((ROWS, 1), 3e2, dtype=torch.float64)], dim=1),
        "all but one alike": torch.cat([0.3 + 1e-9 * random[:, 1:], random[:, :1]], dim=1),
        "wide": random * 10.0 ** torch.randint(-300, 300, (ROWS, SIZE)).double(),
        "subnormal": random * 1e-310,
        "infinite": random.masked_fill(torch.rand(ROWS, SIZE) < 0.1, float("inf")),
        "equal": torch.full((ROWS, SIZE), 0.3, dtype=torch.float64),
        "copies": copies,
        "copies that are rounded": copies * (1 + 2.0**-52 * torch.randint(3, copies.shape)),
        "rising": random.sort(dim=1).values,
        "signed zeros": torch.tensor([0.0, -0.0], dtype=torch.float64)[torch.randint(2, (ROWS, SIZE))],
    }


@pytest.fixture
def small_blocks(monkeypatch, two_threads):
    """A few rows for each block."""
    monkeypatch.setattr(module, "SORTED_AT_ONCE", 1000)
    monkeypatch.setattr(module, "CACHED", 7 * SIZE)


def falling(scores, width):
    """What the sorter gives, put together again."""
    count, width = len(scores), min(width, scores.shape[1])
    best, columns = np.empty((count, width)), np.empty((count, width), dtype=np.int64)
    near, beyond, grains = np.zeros((count, width), dtype=bool), np.empty((count, 1)), np.zeros((count, 1))

    def take(sorter, rows, some):
        found = sorter(some, width, lambda grain: np.full((len(some), 1), APART * (1 + grain)))
        best[rows], columns[rows], beyond[rows], grains[rows] = found.best, found.columns, found.beyond, found.grain
        near[rows].flat[found.near] = True

    sort_in_blocks(scores, take)
    return best, columns, near[:, :-1], beyond, grains


@pytest.mark.parametrize("keys", ["short", "long"])
@pytest.mark.parametrize("kind", kinds())
@pytest.mark.parametrize("width", [1, 30, 200, 300])
def test_falls_as_a_sort_but_for_near_ties(kind, width, keys, two_threads, monkeypatch):
    monkeypatch.setattr(module, "MOST_SHORT_BITS", 13 if keys == "short" else 0)
    scores = kinds()[kind]
    given = scores.clone()
    best, columns, near, beyond, grains = falling(scores, width)
    assert torch.equal(scores, given)
    assert (scores.numpy()[np.arange(ROWS)[:, None], columns] == best).all()
    assert all(len(set(row)) == best.shape[1] for row in columns.tolist())
    with np.errstate(invalid="ignore", over="ignore"):  # ∞ − ∞
        assert (near == (best[:, :-1] - best[:, 1:] <= APART * (1 + grains))).all()
    right = scores.sort(dim=1, descending=True, stable=True)
    exact = grains[:, 0] == 0
    wanted, order = (each[:, :width].numpy() for each in right)
    if width >= scores.shape[1]:
        assert (columns[exact] == order[exact]).all()
        assert (beyond == 0).all()
    with np.errstate(invalid="ignore"):
        off = np.where(best == wanted, 0.0, np.abs(best - wanted))
    assert (off <= beyond + np.where(np.isinf(wanted), 0.0, np.abs(wanted)) * grains * 2.0**-52).all()
    if keys == "long":
        assert not exact.any()
    elif kind in ("random", "few", "some taken out", "rows taken out", "rows of different range", "one far above"):
        assert exact.all()
    elif kind in ("wide", "all but one alike") and width == 300:
        assert not exact.all()


def test_one_thread_sorts_as_two_do(request):
    scores = kinds()["random"]
    right = falling(scores, 100)
    request.getfixturevalue("two_threads")
    assert all((a == b).all() for a, b in zip(right, falling(scores, 100), strict=True))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # torch has threads, too
def test_a_forked_process_starts_threads_of_its_own(small_blocks):
    scores = kinds()["random"]
    right = falling(scores, 100)
    child = os.fork()
    if not child:
        found = falling(scores, 100)
        os._exit(0 if all((a == b).all() for a, b in zip(right, found, strict=True)) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("width", [40, 1000])
def test_largest_are_those_of_a_sort(width):
    scores = torch.randn(5, width, dtype=torch.float64)
    right = scores.sort(dim=1, descending=True).values[:, :10]
    assert torch.equal(largest(scores, 10).sort(dim=1, descending=True).values, right)


@pytest.mark.parametrize("keys", ["short", "long"])
@pytest.mark.parametrize("kind", ["signed zeros", "random"])
def test_where_denormals_are_flushed(kind, keys, monkeypatch):
    monkeypatch.setattr(module, "MOST_SHORT_BITS", 13 if keys == "short" else 0)
    scores = kinds()[kind].round()
    assert torch.set_flush_denormal(True)
    try:
        best, columns, *_ = falling(scores, 300)
    finally:
        torch.set_flush_denormal(False)
    assert (scores.numpy()[np.arange(ROWS)[:, None], columns] == best).all()
    assert (best == scores.sort(dim=1, descending=True).values.numpy()).all()
    assert (np.sort(columns, axis=1) == np.arange(300)).all()
