"""CUHK03: counts, splits, protocol, and what is said where a part is wrong."""

import pytest
from retrieval.data import miniature

from gssf_plug.errors import ArgumentError
from gssf_plug.retrieval.data import cuhk03


@pytest.mark.parametrize(("boxes", "train"), [("detected", 15), ("labeled", 20)])
def test_cuhk03(boxes, train, tmp_path):
    root = miniature.cuhk03(tmp_path)
    assert miniature.described(cuhk03(root, "train", boxes=boxes)) == (train, [0, 1, 2, 3, 4], [0, 1])
    assert miniature.described(cuhk03(root, "query", boxes=boxes)) == (4, [1, 2], [0, 1])
    assert miniature.described(cuhk03(tmp_path, "gallery", boxes=boxes)) == (8, [1, 2], [0, 1])


def test_cuhk03_of_unknown_boxes(tmp_path):
    with pytest.raises(ArgumentError, match=r"`boxes` must be one of .* but got 'labelled'\. Did you mean 'labeled'\?"):
        cuhk03(miniature.cuhk03(tmp_path), "train", boxes="labelled")
