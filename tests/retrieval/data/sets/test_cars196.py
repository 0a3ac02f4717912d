"""Cars-196: counts, splits, protocol, and what is said where a part is wrong."""

import sys

import pytest
from retrieval.data import miniature

from gssf_plug.errors import DataError
from gssf_plug.retrieval.data import cars196, column


def test_cars196_in_both_forms(tmp_path):
    root = miniature.cars196(tmp_path)
    assert miniature.described(cars196(root, "train")) == (16, [0, 1, 2, 3])
    assert miniature.described(cars196(root, "test")) == (16, [4, 5, 6, 7])
    root = miniature.cars196_devkit(tmp_path)
    assert miniature.described(cars196(root, "train")) == (8, [0, 1])
    assert miniature.described(cars196(root, "test")) == (8, [2, 3])
    folders = {path.split("/")[-2] for path in column(cars196(root, "test"), "image")}
    assert folders == {"cars_train", "cars_test"}  # classes are split, not the images of classification


def test_cars196_damaged(tmp_path, monkeypatch):
    root = miniature.cars196(tmp_path)
    (root / "car_ims" / "000001.jpg").unlink()
    with pytest.raises(
        DataError, match=r"lacks 1 of the 16 files that the annotation names, first 'car_ims/000001\.jpg'"
    ):
        cars196(root, "train")
    (root / "cars_annos.mat").write_bytes(b"no MATLAB file")
    with pytest.raises(DataError, match=r"cars_annos\.mat' is no annotation of Cars-196"):
        cars196(root, "train")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "scipy.io", None)
        with pytest.raises(ImportError, match="Install it with: pip install scipy"):
            cars196(root, "train")
    (root / "cars_annos.mat").unlink()
    with pytest.raises(
        DataError, match=r"lacks 'cars_annos\.mat', and, expected in it as 'devkit/cars_train_annos\.mat'"
    ):
        cars196(root, "train")
