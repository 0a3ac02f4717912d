"""The default evaluation of image and text."""

import pytest
import torch

from gssf_plug import GSSFMetric
from gssf_plug.errors import ArgumentError
from gssf_plug.evaluation import image_text_recall
from gssf_plug.retrieval import Embedding, image_text_measures
from gssf_plug.retrieval.measures import first_of_each


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
