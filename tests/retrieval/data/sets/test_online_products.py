"""Stanford Online Products: counts, splits, protocol, and what is said where a part is wrong."""

import pytest
from retrieval.data import miniature

from gssf_plug.errors import DataError
from gssf_plug.retrieval.data import online_products


def test_online_products(tmp_path):
    root = miniature.online_products(tmp_path)
    assert miniature.described(online_products(root, "train")) == (16, [0, 1, 2, 3])
    assert miniature.described(online_products(tmp_path, "test")) == (16, [5, 6, 7, 8])


def test_online_products_damaged(tmp_path):
    root = miniature.online_products(tmp_path)
    path = root / "Ebay_test.txt"
    text = path.read_text()
    path.write_text(text.replace("\n17 5 2 ", "\n17 "))
    with pytest.raises(DataError, match=r"has the line 2 '17 chair_final/.*expected 'image_id class_id"):
        online_products(root, "test")
    path.write_text(text.split("\n", 1)[1])
    with pytest.raises(DataError, match=r"begins with '17 5 2 chair_final"):
        online_products(root, "test")
