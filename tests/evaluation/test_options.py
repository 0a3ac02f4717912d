"""What the ranking functions accept: each check takes what can be ranked, and names what cannot."""

import numpy as np
import pytest
import torch
from datasets import Dataset

from gssf_plug import GSSFMetric
from gssf_plug.errors import ArgumentError
from gssf_plug.evaluation import options


def test_features_of_every_form_become_a_tensor():
    features = torch.randn(3, 4)
    assert options.checked_features("x", features, None) is features
    assert torch.equal(options.checked_features("x", features.numpy(), None), features)
    found = options.checked_features("x", features.double().tolist(), None)
    assert torch.equal(found, features.double())
    assert torch.equal(options.checked_features("x", features, GSSFMetric(4, block_size=2), 4), features)


def test_columns_of_a_data_set_are_features_labels_and_names():
    rows = [[1.0, 0.0], [0.0, 1.0], [1.0, 0.5]]
    table = Dataset.from_dict({"vector": rows, "label": [5, 1, 5], "name": ["b", "a", "b"]})
    for format in (None, "torch", "numpy", "pandas", "arrow"):
        columns = table.with_format(format)
        features = options.checked_features("x", columns["vector"], None)
        assert features.tolist() == rows
        assert options.checked_labels("labels", columns["label"], features, "features").tolist() == [5, 1, 5]
        assert options.numbered(columns["name"])[0].tolist() == [1, 0, 1]


def test_labels_stand_on_the_features_device_as_whole_numbers():
    features = torch.randn(3, 4)
    for labels in ([5, 1, 5], np.array([5, 1, 5], dtype=np.int16), torch.tensor([5, 1, 5], dtype=torch.int32)):
        found = options.checked_labels("labels", labels, features, "features")
        assert found.tolist() == [5, 1, 5]
        assert found.dtype == torch.long


def test_equal_strings_are_equal_numbers_on_both_sides_and_junk_stays_junk():
    first, second = options.numbered(["b", "a", "-1"], np.array(["c", "b"]))
    assert first[0] == second[1]
    assert first[2] == -1
    assert len({*first.tolist(), *second.tolist()}) == 4
    objects = np.array(["a", "b"], dtype=object)
    assert options.numbered(objects)[0].tolist() == [0, 1]
    mixed = ([1, 2], ["a", "b"])
    assert options.numbered(*mixed) == mixed  # one side is no strings: both stay, and are refused by name
    sides = torch.randn(3, 4), torch.randn(2, 4)
    found = options.checked_sides(("q_ids", "g_ids"), (["b", "a", "b"], ["a", "b"]), sides, ("query", "gallery"))
    assert found[0].tolist() == [1, 0, 1]
    assert found[1].tolist() == [0, 1]


def test_no_metric_is_a_neutral_one():
    x, y = torch.randn(3, 4), torch.randn(5, 4)
    cosine = torch.nn.functional.normalize(x) @ torch.nn.functional.normalize(y).T
    torch.testing.assert_close(options.checked_metric(None, x)(x, y), cosine)
    metric = GSSFMetric(4, block_size=2)
    assert options.checked_metric(metric, x) is metric
    with torch.no_grad():
        metric.structures["diagonal"].weight[1] = float("inf")
    with pytest.raises(ArgumentError, match="`metric` must have finite weights, but got NaN or infinity in 'str"):
        options.checked_metric(metric, x)


def test_scores_are_computed_in_float32_or_better():
    x = torch.randn(3, 4)
    assert options.promoted(x.half()).dtype == torch.float32
    assert options.promoted(x.half(), x.bfloat16()).dtype == torch.float32
    assert options.promoted(x, x.double()).dtype == torch.float64


def test_scores_that_are_not_finite_are_refused():
    scores = torch.randn(3, 4)
    assert options.finite_scores(scores) is scores
    large = torch.full((3, 4), 3e38)
    assert options.finite_scores(large) is large  # their sum overflows, they do not
    for bad in (float("nan"), float("inf")):
        scores[1, 2] = bad
        with pytest.raises(ArgumentError, match="`metric` must give finite scores, but got NaN or infinity"):
            options.finite_scores(scores)


@pytest.mark.bad_input
class TestBadInput:
    def refuses(self, match, features, metric=None, width=None):
        with pytest.raises(ArgumentError, match=match):
            options.checked_features("x", features, metric, width)

    def test_features(self, monkeypatch):
        monkeypatch.setattr(options, "FINITE_CHUNK", 2)
        self.refuses("`x` must be a floating-point matrix of features N×D", np.ones((3, 4), dtype=int))
        self.refuses(r"features N×D, but got torch.float32 of shape \(4,\)", torch.randn(4))
        self.refuses("`x` must be a tensor, .*, or lists of .* equal length", [[1.0, 2.0], [1.0]])
        self.refuses("`x` must hold at least one item, but got none", torch.randn(0, 4))
        self.refuses(
            "`x` must be stored densely, but got torch.float32 of layout torch.sparse_coo", torch.ones(3, 4).to_sparse()
        )
        self.refuses("`x` must have the metric's 8 channels", torch.randn(3, 4), GSSFMetric(8, block_size=4))
        self.refuses("`x` must have the other side's 8 channels", torch.randn(3, 4), width=8)
        self.refuses("`metric` must be a GSSFMetric or None", torch.randn(3, 4), metric="cosine")
        features = torch.randn(5, 4)
        features[3, 1] = float("nan")
        self.refuses("`x` must be finite, but got NaN or infinity in row 3, channel 1", features)

    @pytest.mark.parametrize(
        ("labels", "got"),
        [
            (None, "None. Give it"),
            ([1, 2], r"torch.int64 of shape \(2,\)"),
            ([1.0, 2.0, 3.0], "torch.float32"),
            (["a", "b", "c"], "list of other values. Number the labels"),
            (torch.zeros(3, 1).long(), r"torch.int64 of shape \(3, 1\)"),
        ],
    )
    def test_labels(self, labels, got):
        with pytest.raises(ArgumentError, match=rf"`ids` must hold one whole number per row of `query` \(3\), .*{got}"):
            options.checked_labels("ids", labels, torch.randn(3, 4), "query")
