"""CUB-200-2011: counts, splits, protocol, and what is said where a part is wrong."""

import pytest
from retrieval.data import miniature

from gssf_plug.errors import DataError
from gssf_plug.retrieval.data import cub200


def test_cub200_splits_by_class(tmp_path):
    root = miniature.cub200(tmp_path)
    assert miniature.described(cub200(root, "train")) == (16, [0, 1, 2, 3])
    assert miniature.described(cub200(tmp_path, "test")) == (16, [4, 5, 6, 7])


def test_cub200_damaged(tmp_path):
    root = miniature.cub200(tmp_path)
    labels = root / "image_class_labels.txt"
    lines = labels.read_text().splitlines()
    labels.write_text("\n".join(lines[:-1]))
    with pytest.raises(DataError, match=r"names the classes of 31 images, but 'images\.txt' has 32"):
        cub200(root, "train")
    labels.write_text("\n".join([*lines[:-1], "thirty-two 8"]))
    with pytest.raises(DataError, match=r"has the line 'thirty-two 8', expected a number and a value"):
        cub200(root, "train")
    labels.unlink()
    with pytest.raises(DataError, match=r"lacks an annotation file, expected in it as 'image_class_labels\.txt'"):
        cub200(root, "train")
