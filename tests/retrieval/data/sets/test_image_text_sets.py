"""Flickr30K, MS-COCO and the region features of SCAN and VSE∞: counts, splits, what is said of a wrong part."""

import json
import pickle
import resource

import numpy as np
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


@pytest.mark.parametrize("build", [miniature.f30k_precomp, miniature.coco_precomp])
def test_both_forms_of_features_give_one_row_per_image(build, tmp_path):
    root = build(tmp_path)
    for split, images in {"train": 12, "dev": 5, "test": 6 if build is miniature.f30k_precomp else 2}.items():
        rows = region_features(root, split)
        stored = np.load(next(tmp_path.rglob(f"{split}_ims.npy")))
        step = len(stored) // images
        assert len(rows) == images
        assert column(rows, "label") == list(range(images))
        for image in range(images):
            row = rows[image]
            assert set(row) == {"features", "captions", "label"}
            assert row["features"].dtype == np.float32
            assert np.array_equal(row["features"], stored[step * image])
            assert row["captions"] == [miniature.sentence(image, number) for number in range(5)]


def test_coco_testall(tmp_path):
    assert len(region_features(miniature.coco_precomp(tmp_path), "testall")) == 10


def test_dev_is_cut(tmp_path):
    root = miniature.f30k_precomp(tmp_path)
    miniature.regions(root, 1_014, "dev", repeated=True, width=2, regions=1)
    assert len(region_features(root, "dev")) == 1_000  # 5,070 captions cut to 5,000
    assert len(region_features(root, "dev", dev_captions=None)) == 1_014
    assert len(region_features(root, "dev", dev_captions=10)) == 2
    with pytest.raises(ArgumentError, match=r"`dev_captions` must be a positive multiple of the 5 captions"):
        region_features(root, "dev", dev_captions=7)


def test_features_are_mapped_and_workers_open_them_themselves(tmp_path):
    rows = region_features(miniature.coco_precomp(tmp_path), "train")
    rows[0]
    reader = rows.format["format_kwargs"]["transform"]
    assert isinstance(reader._array, np.memmap)
    assert len(pickle.dumps(reader)) < 1_000
    assert np.array_equal(pickle.loads(pickle.dumps(reader))({"features": [3]})["features"][0], rows[3]["features"])


def test_features_larger_than_the_memory_they_take(tmp_path):
    images, shape = 4_000, (36, 2048)
    array = np.lib.format.open_memmap(tmp_path / "train_ims.npy", "w+", np.float32, (images, *shape))  # 1.2 GB, sparse
    array[1234, 5, 6] = 7.0
    del array
    (tmp_path / "train_caps.txt").write_text("a dog .\n" * (5 * images))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows = region_features(tmp_path, "train")
    assert rows[1234]["features"][5, 6] == 7.0
    assert sum(float(rows[row]["features"].sum()) for row in range(0, images, 100)) == 0.0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_a_row_is_a_copy(tmp_path):
    rows = region_features(miniature.coco_precomp(tmp_path), "train")
    rows[0]["features"][:] = -1  # neither refused nor written to the file
    assert (rows[0]["features"] >= 0).all()


def test_captions_and_images_that_disagree_in_number(tmp_path):
    root = miniature.f30k_precomp(tmp_path)
    captions = root / "train_caps.txt"
    lines = captions.read_text().splitlines()
    captions.write_text("\n".join(lines[:-1]))
    with pytest.raises(DataError, match=r"has 60 rows of features for the 59 captions of 'train_caps\.txt'; expected"):
        region_features(root, "train")
    captions.write_text("\n".join([*lines[:7], "", *lines[8:]]))
    with pytest.raises(DataError, match="has an empty caption in line 8"):
        region_features(root, "train")


def test_one_image_per_caption_is_not_taken_for_repeated_images(tmp_path):
    miniature.regions(tmp_path, 10, "train")
    lines = (tmp_path / "train_caps.txt").read_text().splitlines()
    (tmp_path / "train_caps.txt").write_text("\n".join(lines[:10]))
    with pytest.raises(DataError, match=r"rows 0 and 4 are not the same image\. Pass captions_per_image=1"):
        region_features(tmp_path, "train")
    assert len(region_features(tmp_path, "train", captions_per_image=1)) == 10


def test_damaged_features_are_named(tmp_path):
    root = miniature.f30k_precomp(tmp_path)
    path = root / "test_ims.npy"
    path.write_bytes(path.read_bytes()[:1_000])
    with pytest.raises(DataError, match=r"test_ims\.npy' is damaged or no \.npy array"):
        region_features(root, "test")
    np.save(path, np.zeros((6, 24), dtype=np.float32))
    with pytest.raises(
        DataError, match=r"holds float32 of shape \(6, 24\), expected floating \(rows, regions, width\)"
    ):
        region_features(root, "test")
    path.unlink()
    with pytest.raises(DataError, match=r"expected in it as 'test_ims\.npy' or 'precomp/test_ims\.npy'.*Did you mean"):
        region_features(root, "test")


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
