"""One row per caption, and batches that do not take captions of one image for negatives."""

import pytest
from datasets import Dataset
from retrieval.data import miniature

from gssf_plug.errors import ArgumentError
from gssf_plug.retrieval.data import coco, columns_of, flickr30k, read_columns
from gssf_plug.retrieval.data.columns import CaptionPairs
from gssf_plug.retrieval.data.images import ImageRows


def test_every_caption_is_a_row_with_its_image(tmp_path):
    rows = coco(miniature.coco(tmp_path), "train", captions_per_image=None)  # the first image has seven captions
    pairs = CaptionPairs(rows)
    assert len(pairs) == 7 + 5 * 12
    for index, (image, caption) in {0: (0, 0), 6: (0, 6), 7: (1, 0), 66: (12, 4)}.items():
        row = pairs[index]
        assert row["captions"] == [miniature.sentence(image, caption)]
        assert row["label"] == image
        assert row["image"].tobytes() == rows[image]["image"].tobytes()
    assert CaptionPairs(flickr30k(miniature.flickr30k(tmp_path / "f"), "train"))[-1]["label"] == 11


def test_one_text_per_row():
    rows = Dataset.from_dict({"captions": ["a", "b"], "label": [0, 1]})
    assert [pair["captions"] for pair in map(CaptionPairs(rows).__getitem__, range(2))] == [["a"], ["b"]]


def test_without_captions(tmp_path):
    rows = Dataset.from_dict({"label": [0]})
    with pytest.raises(ArgumentError, match="`rows` must have a column 'captions'"):
        CaptionPairs(rows)


def test_images_pass_through_a_transform(tmp_path):
    rows = flickr30k(miniature.flickr30k(tmp_path), "train")
    assert ImageRows(CaptionPairs(rows))[3]["image"].shape == (3, *reversed(miniature.SIZE))


def test_the_older_name_of_reading_columns_works():
    assert columns_of is read_columns
