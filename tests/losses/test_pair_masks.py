"""Positives and negatives by id, each pair one of them or neither, and masks that do not fit refused by name."""

import numpy as np
import pytest
import torch

from gssf_plug.errors import ArgumentError
from gssf_plug.losses.pair_masks import relevance_by_id, sort_pairs


def batch():
    return torch.randn(3, 4), torch.rand(3, 4) < 0.5, torch.rand(3, 4) < 0.3


def test_equal_ids_belong_together():
    right = [[True, False], [False, True], [True, False]]
    for one, other in (([5, 2, 5], [5, 2]), (np.array([5, 2, 5]), np.array([5, 2])), (torch.tensor([5, 2, 5]), [5, 2])):
        assert relevance_by_id(one, other).tolist() == right


def test_every_pair_is_positive_negative_or_left_out():
    scores, relevance, exclude = batch()
    pairs = sort_pairs(scores, relevance, exclude)
    for i in range(3):
        for j in range(4):
            kinds = bool(pairs.positive[i, j]), bool(pairs.negative[i, j])
            assert kinds == ((False, False) if exclude[i, j] else (bool(relevance[i, j]), not relevance[i, j]))
    everything = sort_pairs(scores, relevance, None)
    assert torch.equal(everything.positive, relevance)
    assert torch.equal(everything.negative, ~relevance)


def test_the_other_direction_is_the_transpose():
    pairs = sort_pairs(*batch())
    for one, other in zip(pairs, pairs.swapped(), strict=True):
        assert torch.equal(one.T, other)


@pytest.mark.parametrize(
    ("given", "kept"),
    [(torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.float64, torch.float64)],
)
def test_scores_are_in_float32_or_better(given, kept):
    scores, relevance, _ = batch()
    assert sort_pairs(scores.to(given), relevance, None).scores.dtype == kept


@pytest.mark.bad_input
class TestBadInput:
    def refuses(self, match, *given):
        with pytest.raises(ArgumentError, match=match):
            sort_pairs(*given)

    def test_scores(self):
        scores, relevance, _ = batch()
        rule = r"`scores` must be a matrix of floating-point scores \(N, M\), but got"
        self.refuses(f"{rule} list", scores.tolist(), relevance, None)
        self.refuses(rf"{rule} torch.float32 of shape \(12,\)", scores.flatten(), relevance, None)
        self.refuses(f"{rule} torch.int64", scores.long(), relevance, None)
        self.refuses(f"{rule} .* on the meta device", scores.to("meta"), relevance, None)

    def test_masks(self):
        scores, relevance, exclude = batch()
        rule = r"must be a boolean matrix of shape \(3, 4\), one value per score, but got"
        self.refuses(f"`relevance` {rule} torch.float32", scores, relevance.float(), None)
        self.refuses(rf"`relevance` {rule} torch.bool of shape \(4, 3\)", scores, relevance.T, None)
        self.refuses(f"`relevance` {rule} NoneType", scores, None, None)
        self.refuses(f"`exclude` {rule} an array of bool", scores, relevance, exclude.numpy())
        self.refuses(f"`forbidden` {rule} an array of bool", scores, relevance, exclude.numpy(), "forbidden")
        self.refuses("`relevance` must be on the device of `scores`, cpu, but got meta", scores, relevance.to("meta"),
                     None)  # fmt: skip

    def test_ids(self):
        ids = torch.arange(3)
        for wrong in (ids.float(), ids[:, None], torch.tensor(1)):
            with pytest.raises(ArgumentError, match="`gallery_ids` must hold one whole number per item, but got"):
                relevance_by_id(ids, wrong)
        with pytest.raises(ArgumentError, match="`query_ids` must be a tensor, a numpy array, or lists of numbers"):
            relevance_by_id("abc", ids)
