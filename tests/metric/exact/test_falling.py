"""Falling scores, sorted as numbers that carry their column, beside a stable sort."""

import pytest
import torch

from gssf_plug.metric.exact import falling as module
from gssf_plug.metric.exact.falling import falling_scores


def kinds():
    random = torch.randn(40, 300, dtype=torch.float64)
    return {
        "random": random,
        "some taken out": random.masked_fill(torch.rand(40, 300) < 0.3, float("-inf")),
        "a row taken out": random.masked_fill((torch.arange(40) == 7)[:, None], float("-inf")),
        "wide": random * 10.0 ** torch.randint(-300, 300, (40, 300)),
        "infinite": random.masked_fill(torch.rand(40, 300) < 0.1, float("inf")),
        "equal": torch.full((40, 300), 0.3, dtype=torch.float64),
        "signed zeros": torch.tensor([0.0, -0.0], dtype=torch.float64)[torch.randint(2, (40, 300))],
    }


@pytest.mark.parametrize("kind", kinds())
@pytest.mark.parametrize("width", [1, 30, 60, 299, 300])
@pytest.mark.parametrize("threads", [1, 2])
def test_falls_as_a_sort_but_for_near_ties(kind, width, threads, monkeypatch):
    monkeypatch.setattr(module, "SORTED_AT_ONCE", 1000)
    scores, before = kinds()[kind], torch.get_num_threads()
    given = scores.clone()
    torch.set_num_threads(threads)
    try:
        best, columns, grain = falling_scores(scores, width)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(scores, given)
    given = scores.gather(1, columns)
    lost = (given - best).nan_to_num(nan=0.0, posinf=float("inf"))  # nothing is ∞ − ∞ apart
    assert (best.abs() <= given.abs()).all()
    assert (lost.abs() <= given.abs().nan_to_num(posinf=0.0) * grain * 2.0**-52).all()
    assert torch.equal(best.sort(dim=1, descending=True).values, best)
    assert all(len(set(row)) == width for row in columns.tolist())
    right = scores.sort(dim=1, descending=True).values[:, :width]
    off = (best - right).abs().nan_to_num(nan=0.0, posinf=float("inf"))  # nothing is ∞ − ∞ apart
    near = right.abs().nan_to_num(posinf=0.0, neginf=0.0) * grain * 2.0**-51
    assert (off <= near).all()
    if kind == "random" and width > 60:
        assert grain == 512


def test_what_is_wider_than_its_bits_is_sorted_whole(monkeypatch):
    monkeypatch.setattr(module, "MOST_BITS", 4)
    scores = torch.randn(3, 40, dtype=torch.float64)
    best, columns, grain = falling_scores(scores, 40)
    right = scores.sort(dim=1, descending=True)
    assert grain == 0
    assert torch.equal(best, right.values)
    assert torch.equal(columns, right.indices)


@pytest.mark.parametrize("kind", ["signed zeros", "random"])
def test_where_denormals_are_flushed(kind):
    scores = kinds()[kind].round()
    assert torch.set_flush_denormal(True)
    try:
        best, columns, _ = falling_scores(scores, 300)
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(scores.gather(1, columns), best)
    assert (columns.sort(dim=1).values == torch.arange(300)).all()
