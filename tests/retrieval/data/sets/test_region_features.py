"""Region features of SCAN and VSE∞: one row for each image, splits, files larger than memory, damaged parts."""

import pickle
import resource

import numpy as np
import pytest
from retrieval.data import miniature

from gssf_plug.errors import ArgumentError, DataError
from gssf_plug.retrieval.data import column, region_features


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
