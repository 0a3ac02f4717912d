"""Flickr30K and MS-COCO by Karpathy: counts, splits, what is said of a wrong part."""

import json

import pytest
from retrieval.data import miniature

from gssf_plug.errors import ArgumentError, DataError
from gssf_plug.retrieval.data import coco, column, flickr30k, region_features
from gssf_plug.retrieval.data.images import UnreadableError


def test_flickr30k_splits_and_columns(tmp_path):
    root = miniature.flickr30k(tmp_path)
    sets = {split: flickr30k(root, split) for split in ("train", "val", "test")}
    assert {split: len(rows) for split, rows in sets.items()} == {"train": 12, "val": 4, "test": 6}
    row = sets["test"][2]
    assert set(row) == {"image", "captions", "label"}
    assert row["label"] == 18
    assert row["image"].size == miniature.SIZE
    assert row["image"].mode == "RGB"
    assert row["captions"] == [miniature.sentence(18, number) for number in range(5)]
    labels = [set(column(rows, "label")) for rows in sets.values()]
    assert sum(map(len, labels)) == len(set.union(*labels)) == 22


def test_coco_with_and_without_restval_and_its_long_captions(tmp_path):
    root = miniature.coco(tmp_path)
    assert [len(coco(root, split)) for split in ("train", "val", "test")] == [13, 4, 10]
    assert len(coco(root, "train", restval=False)) == 10
    assert [len(row["captions"]) for row in coco(root, "train")] == [5] * 13
    assert len(coco(root, "train", captions_per_image=None)[0]["captions"]) == 7
    assert coco(root, "train")[12]["image"].size == miniature.SIZE  # of val2014


def test_images_may_lie_elsewhere(tmp_path):
    root = miniature.flickr30k(tmp_path / "a")
    (root / "flickr30k-images").rename(tmp_path / "pictures")
    with pytest.raises(DataError, match=r"lacks the images, expected in it as 'flickr30k-images' or "):
        flickr30k(root, "test")
    assert flickr30k(root, "test", images=tmp_path / "pictures")[0]["image"].size == miniature.SIZE


def test_nothing_is_decoded_before_a_row_is_read(tmp_path):
    root = miniature.flickr30k(tmp_path)
    for path in (root / "flickr30k-images").iterdir():
        path.write_bytes(b"not an image")
    rows = flickr30k(root, "train")
    assert column(rows, "label")[:3] == [0, 1, 2]
    with pytest.raises(UnreadableError, match=r"1000092795\.jpg"):
        rows[0]


def test_an_unknown_split_and_a_misspelt_folder_offer_near_names(tmp_path):
    root = miniature.flickr30k(tmp_path / "flickr30k")
    with pytest.raises(ArgumentError, match=r"`split` must be one of .*'tests'\. Did you mean 'test'\?"):
        flickr30k(root, "tests")
    with pytest.raises(DataError, match=r"flikr30k' does not exist\. Did you mean '.*/flickr30k'\?"):
        flickr30k(tmp_path / "flikr30k", "test")
    with pytest.raises(DataError, match=r"deeper' does not exist\. Did you mean '.*/flickr30k'\?"):
        flickr30k(tmp_path / "flikr30k" / "deeper", "test")


def test_missing_and_damaged_parts_are_named(tmp_path):
    root = miniature.flickr30k(tmp_path)
    (root / "flickr30k-images" / "1000092795.jpg").unlink()
    (root / "flickr30k-images" / "1000092802.jpg").unlink()
    with pytest.raises(
        DataError, match=r"lacks 2 of the 12 files that 'dataset_flickr30k\.json' names, first '10000927"
    ):
        flickr30k(root, "train")
    path = root / "dataset_flickr30k.json"
    whole = path.read_text()
    path.write_text(whole[:500])
    with pytest.raises(DataError, match=r"dataset_flickr30k\.json' is no Karpathy file \(JSONDecodeError"):
        flickr30k(root, "test")
    path.write_text(json.dumps({"annotations": []}))
    with pytest.raises(DataError, match=r"is no Karpathy file \(KeyError: 'images'\)"):
        flickr30k(root, "test")
    entries = json.loads(whole)
    entries["images"][-1]["sentences"] = []
    path.write_text(json.dumps(entries))
    with pytest.raises(DataError, match=r"has no caption for image '1000092942\.jpg'"):
        flickr30k(root, "test")
    path.unlink()
    with pytest.raises(DataError, match=r"lacks the captions, expected in it as 'dataset_flickr30k\.json' or 'annot"):
        flickr30k(root, "test")


@pytest.mark.bad_input
def test_no_captions_asked_for(tmp_path):
    with pytest.raises(ArgumentError, match=r"`captions_per_image` must be at least 1, or None, but got 0"):
        flickr30k(miniature.flickr30k(tmp_path), "test", captions_per_image=0)


def test_a_count_that_is_not_the_official_one_is_warned_of(tmp_path, caplog):
    flickr30k(miniature.flickr30k(tmp_path), "test")
    assert "Flickr30K, split 'test': 6 images; the official set has 1,000" in caplog.text


def test_a_byte_order_mark_is_no_part_of_a_caption(tmp_path):
    root = miniature.f30k_precomp(tmp_path / "a")
    path = root / "test_caps.txt"
    before = region_features(root, "test")[0]["captions"]
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert region_features(root, "test")[0]["captions"] == before
    root = miniature.flickr30k(tmp_path / "b")
    (path,) = root.glob("*.json")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(flickr30k(root, "test")) == 6
