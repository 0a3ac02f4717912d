"""MSMT17: counts, splits, protocol, and what is said where a part is wrong."""

import pytest
from retrieval.data import miniature

from gssf_plug.errors import DataError
from gssf_plug.retrieval.data import msmt17


@pytest.mark.parametrize("release", [1, 2])
def test_msmt17(release, tmp_path):
    root = miniature.msmt17(tmp_path, release=release)
    assert miniature.described(msmt17(root, "train")) == (20, [0, 1, 2, 3, 4], [0, 7])
    assert miniature.described(msmt17(root, "val")) == (5, [0, 1, 2, 3, 4], [14])
    assert miniature.described(msmt17(tmp_path, "trainval")) == (25, [0, 1, 2, 3, 4], [0, 7, 14])
    assert miniature.described(msmt17(root, "query")) == (3, [0, 1, 2], [1])
    assert miniature.described(msmt17(root, "gallery")) == (6, [0, 1, 2], [2, 3])


def test_msmt17_damaged(tmp_path):
    root = miniature.msmt17(tmp_path)
    next((root / "test").rglob("*_02_*.jpg")).unlink()
    with pytest.raises(DataError, match=r"lacks 1 of the 3 files that 'list_query\.txt' names, first '0"):
        msmt17(root, "query")
    (root / "list_val.txt").write_text("0000/0000_000.jpg\n")
    with pytest.raises(DataError, match=r"list_val\.txt' has the line 1 '0000/0000_000\.jpg', expected"):
        msmt17(root, "trainval")
    (root / "list_train.txt").unlink()
    with pytest.raises(
        DataError, match=r"lacks the list of 'train', expected in it as 'list_train\.txt' or 'MSMT17_V1"
    ):
        msmt17(root, "train")
