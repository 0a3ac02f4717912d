"""In-shop Clothes: counts, splits, protocol, and what is said where a part is wrong."""

import pytest
from retrieval.data import miniature

from gssf_plug.errors import DataError
from gssf_plug.retrieval.data import in_shop


def test_in_shop(tmp_path):
    root = miniature.in_shop(tmp_path)
    assert miniature.described(in_shop(root, "train")) == (16, [0, 1, 2, 3])
    assert miniature.described(in_shop(root, "query")) == (4, [6, 7, 8, 9])
    assert miniature.described(in_shop(root, "gallery")) == (8, [6, 7, 8, 9])
    (root / "Img" / "img").rename(root / "img")  # the other place of the images
    assert len(in_shop(root, "gallery")) == 8


def test_in_shop_damaged(tmp_path):
    root = miniature.in_shop(tmp_path)
    path = root / "Eval" / "list_eval_partition.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-1]))
    with pytest.raises(DataError, match=r"has 27 images, but its first line says 28"):
        in_shop(root, "train")
    path.write_text("\n".join([*lines[:-1], "img/lost.jpg"]))
    with pytest.raises(DataError, match=r"has the line 30 'img/lost\.jpg', expected 'image id_00000002 train'"):
        in_shop(root, "train")
    path.write_text("\n".join(lines[1:]))
    with pytest.raises(DataError, match=r"does not begin with a count and 'image_name item_id evaluation_status'"):
        in_shop(root, "train")
