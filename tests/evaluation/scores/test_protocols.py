"""What every kind of scores promises: bounds that hold for the canonical score of every pair."""

import pytest
import torch
from metric.scored import FEATURES, perturbed, sum_exactly

from gssf_plug.evaluation.scores import FeatureScores, GivenScores

QUERIES, ITEMS = 30, 200
METRICS = {"cosine": None, "folded": perturbed(), "raw": perturbed(normalize=False)}


def of_features(dtype):
    return lambda queries, gallery, metric: FeatureScores(metric, queries, gallery, dtype)


SCORES = {
    "float32": of_features(torch.float32),
    "bfloat16": of_features(torch.bfloat16),
    "two digits": of_features(torch.int8),
    "given": lambda queries, gallery, metric: GivenScores(torch.randn(QUERIES, ITEMS)),
}
CASES = [
    (kind, metric)
    for kind in SCORES
    for metric in METRICS
    if not (kind == "given" and metric != "cosine") and not (kind == "two digits" and metric == "raw")
]


@pytest.mark.parametrize("features", ["random", "half", "double", "alike", "signs", "uneven"])
@pytest.mark.parametrize(("kind", "metric"), CASES)
@pytest.mark.parametrize("finest", [False, True])
def test_bounds_hold(finest, kind, metric, features, monkeypatch):
    sum_exactly(monkeypatch)
    queries, gallery = FEATURES[features](QUERIES), FEATURES[features](ITEMS)
    if features == "uneven" and metric == "raw":
        queries, gallery = queries.sign(), gallery.sign()
    scores = SCORES[kind](queries, gallery, METRICS[metric]).of(slice(0, QUERIES))
    columns, some = slice(10, 190), slice(3, 28)
    assert scores.side_by_side(columns) >= 1
    part = scores.part(columns, some, finest=finest)
    rows, items = torch.cartesian_prod(torch.arange(25), torch.arange(180)).T
    right = scores.canonical(rows + 3, items + 10).view(25, 180)
    slack = scores.slack[some, None]
    around = part.around(right - slack, right + slack)
    assert bool(((around.low <= part.fast) & (part.fast <= around.high)).all())
    between = part.between(rows, part.fast[rows, items])
    bounds = [scores.pairs(columns, rows + 3, items), *([between] if between is not None else [])]
    assert (between is None) == (part.can_be_closer and part.fast.dtype == torch.bfloat16)
    for low, high in bounds:
        assert bool((low - scores.slack[rows + 3] <= right[rows, items]).all())
        assert bool((high + scores.slack[rows + 3] >= right[rows, items]).all())
    close = scores.close(rows + 3, items + 10)
    assert bool(((close - right[rows, items]).abs() <= scores.slack[rows + 3]).all())
