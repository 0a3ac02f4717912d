"""Market-1501: counts, splits, protocol, and what is said where a part is wrong."""

import pytest
from retrieval.data import miniature

from gssf_plug.errors import ArgumentError, DataError
from gssf_plug.retrieval.data import column, market1501


def test_market1501(tmp_path):
    root = miniature.market1501(tmp_path)
    assert miniature.described(market1501(root, "train")) == (24, [0, 1, 2, 3, 4, 5], [0, 1, 2])
    assert miniature.described(market1501(root, "query")) == (6, [1, 3, 4], [0, 1])
    assert miniature.described(market1501(root, "gallery")) == (13, [0, 1, 3, 4], [0, 1])  # junk out, the distractor in
    assert len(market1501(tmp_path, "query")) == 6  # the folder that holds it will do
    names = [path.rsplit("/", 1)[-1] for path in column(market1501(root, "query"), "image")]
    labels, cameras = (column(market1501(root, "query"), name) for name in ("label", "camera"))
    assert names == [f"{i:04d}_c{c + 1}s1_001051_01.jpg" for i, c in zip(labels, cameras, strict=True)]


def test_market1501_of_another_pattern_or_incomplete(tmp_path):
    root = miniature.market1501(tmp_path)
    miniature.draw(root / "query" / "person_7.jpg", 0)
    with pytest.raises(DataError, match=r"query' holds 'person_7\.jpg', which is not named like the files of the set"):
        market1501(root, "query")
    (root / "query").rename(root / "querry")
    with pytest.raises(
        DataError, match=r"lacks the images of 'query', expected in it as 'query' or.*mean '.*querry'\?"
    ):
        market1501(root, "query")
    (root / "query").mkdir()
    with pytest.raises(DataError, match=r"query' holds no image"):
        market1501(root, "query")
    with pytest.raises(ArgumentError, match=r"`split` must be one of .* but got 'galery'\. Did you mean 'gallery'\?"):
        market1501(root, "galery")
