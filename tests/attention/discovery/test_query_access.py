"""HeadView takes the heads' channels and puts them back, wherever they lie."""

import pytest
import torch

from gssf_plug.attention.discovery.layouts import Heads, Packing
from gssf_plug.attention.discovery.query_access import HeadView

HEADS = Heads(4, 2, 3, 3)


@pytest.mark.parametrize(
    ("view", "shape"),
    [
        (HeadView.whole(4, 3), (2, 5, 12)),
        (HeadView.whole(4, 3, head_axis=-2), (2, 5, 4, 3)),
        (HeadView.whole(4, 3, head_axis=-3), (2, 4, 5, 3)),
        (HeadView.whole(4, 3, axis=1), (2, 12, 6, 7)),
        (HeadView(Packing("qkv").channels("q", 24, HEADS), 24), (2, 5, 24)),
        (HeadView(Packing("qkv").channels("k", 24, HEADS), 24), (2, 5, 24)),
        (HeadView(Packing("qkv", "key_heads").channels("q", 24, HEADS), 24), (2, 5, 24)),
        (HeadView(Packing("qkv", "key_heads").channels("k", 24, HEADS), 24, axis=0), (24, 5)),
    ],
)
def test_put_undoes_take_and_changes_nothing_else(view: HeadView, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    rows = view.take(x)
    assert rows.shape[-1] == view.heads * view.size
    assert torch.equal(view.put(x, rows), x)
    moved = view.put(x, rows + 1)
    assert int((moved != x).sum()) == rows.numel()
    assert torch.equal(view.take(moved), rows + 1)


def test_a_row_holds_its_head() -> None:
    x = torch.arange(24.0).expand(1, 1, 24)
    grouped = Packing("qkv", "key_heads")  # two groups of two query heads, one key head, one value head
    assert HeadView(grouped.channels("q", 24, HEADS), 24).take(x)[0, 0].tolist() == [*range(6), *range(12, 18)]
    assert HeadView(grouped.channels("k", 24, HEADS), 24).take(x)[0, 0].tolist() == [6, 7, 8, 18, 19, 20]
