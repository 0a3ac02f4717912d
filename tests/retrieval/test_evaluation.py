"""Evaluations of image and text, of re-identification and of instances."""

from functools import partial

import pytest
import torch

from gssf_plug import GSSFMetric
from gssf_plug.errors import ArgumentError
from gssf_plug.evaluation import image_text_recall, instance_recall, reid_ranking
from gssf_plug.retrieval import Embedding, WithRowNumbers, image_text_measures, instance_measures, reid_measures
from gssf_plug.retrieval.evaluation import first_of_each


def test_texts_find_their_image_by_id():
    images, texts = torch.randn(6, 8), torch.randn(11, 8)
    image_ids = torch.tensor([40, 7, 13, 99, 2, 51])
    text_ids = torch.tensor([7, 7, 2, 99, 40, 13, 51, 51, 51, 2, 40])
    owner = torch.tensor([image_ids.tolist().index(text_id) for text_id in text_ids.tolist()])
    metric = GSSFMetric(8, block_size=4)
    torch.nn.init.normal_(metric.structures["diagonal"].weight)
    for given in (None, metric):
        expected = image_text_recall(images, texts, owner, metric=given)
        assert image_text_measures(Embedding(images, image_ids, texts, text_ids), given) == expected


def test_rows_of_pairs_count_each_image_once():
    images, texts = torch.randn(3, 8), torch.randn(6, 8)
    ids = torch.tensor([5, 1, 9])
    pairs = Embedding(images.repeat_interleave(2, 0), ids.repeat_interleave(2), texts, ids.repeat_interleave(2))
    once = Embedding(images, ids, texts, ids.repeat_interleave(2))
    assert image_text_measures(pairs, None) == image_text_measures(once, None)


def test_first_of_each():
    assert first_of_each(torch.tensor([4, 2, 4, 9, 2, 2, 1])).tolist() == [0, 1, 3, 6]


def test_a_text_of_no_image_is_named():
    embedding = Embedding(torch.ones(2, 4), torch.tensor([1, 2]), torch.ones(2, 4), torch.tensor([2, 3]))
    with pytest.raises(ArgumentError, match="`text_ids` must be ids of images, but got 3"):
        image_text_measures(embedding, None)


def one_sided(features, rows):
    return Embedding(features, rows, features, rows)


def test_rows_are_looked_up_by_number_whatever_is_missing():
    """Four of twenty rows could not be read; the rest came in another order."""
    ids, cameras = torch.arange(20) % 5, torch.arange(20) // 5
    rows = torch.randperm(20)[:16]
    x = torch.randn(5, 6)[ids[rows]] + torch.randn(16, 6)
    asks, own = cameras == 0, cameras[rows] == 0
    metric = GSSFMetric(6, block_size=3, constraint="symmetric")
    got = reid_measures(ids, cameras, is_query=asks)(one_sided(x, rows), metric)
    sides = [column[side] for column in (x, ids[rows], cameras[rows]) for side in (own, ~own)]
    assert got == reid_ranking(*sides, metric=metric)
    everyone = reid_measures(ids, cameras, ranks=(2,))(one_sided(x, rows), None)
    both = [column for column in (x, ids[rows], cameras[rows]) for _ in range(2)]
    assert everyone == reid_ranking(*both, ranks=(2,))
    assert "R@2" in everyone
    assert instance_measures(ids)(one_sided(x, rows), metric) == instance_recall(x, ids[rows], metric=metric)
    shop = instance_measures(ids, is_query=asks, ks=(1, 3))(one_sided(x, rows), None)
    gallery = {"gallery": x[~own], "gallery_labels": ids[rows][~own]}
    assert shop == instance_recall(x[own], ids[rows][own], ks=(1, 3), **gallery)


def test_folds_and_numbers():
    x, y = torch.randn(6, 4), torch.randn(12, 4)
    owners = torch.arange(6).repeat_interleave(2)
    embedding = Embedding(x, torch.arange(6), y, owners)
    got = partial(image_text_measures, folds=3)(embedding, None)
    assert got == image_text_recall(x, y, owners, folds=3)
    assert got != image_text_measures(embedding, None)
    assert list(WithRowNumbers([{"a": 1}, {"a": 2}])) == [{"a": 1, "row": 0}, {"a": 2, "row": 1}]


@pytest.mark.bad_input
def test_cameras_that_leave_no_query_a_positive_are_refused_before_anything_is_trained():
    ids = torch.arange(4).repeat_interleave(3)
    with pytest.raises(
        ArgumentError, match="`cameras` must show the identity of a query by another camera.*one camera"
    ):
        reid_measures(ids, torch.zeros(12).long())
    with pytest.raises(ArgumentError, match="2 cameras, none of which shares an identity.*instance_measures"):
        reid_measures(ids, (ids > 1).long())
    cameras = torch.tensor([0, 0, 1] * 4)
    reid_measures(ids, cameras)
    with pytest.raises(ArgumentError, match="`cameras` must"):
        reid_measures(ids, cameras, is_query=torch.ones(12).bool())  # no gallery
    reid_measures(ids, cameras, is_query=cameras == 0)
