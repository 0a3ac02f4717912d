"""HeadView takes heads out of a tensor and puts them back; a site replaces them, without needless work."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from gssf_plug.attention.discovery.layouts import Heads, Packing
from gssf_plug.attention.discovery.query_access import HeadView, OutputSite

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


class Loud(nn.Linear):
    """A layer of a class of its own may do anything."""


def listened(layer: nn.Module) -> nn.Module:
    layer.register_forward_hook(lambda module, arguments, output: output + 1)
    return layer


def patched(layer: nn.Module) -> nn.Module:
    inner = layer.forward
    layer.forward = lambda x: inner(x)  # as accelerate does for offloaded weights
    return layer


@pytest.mark.parametrize(
    ("make", "works"),
    [
        (nn.Linear, 0),
        (Loud, 1),
        (lambda *size: listened(nn.Linear(*size)), 1),
        (lambda *size: patched(nn.Linear(*size)), 1),
        (lambda *size: nn.utils.parametrizations.weight_norm(nn.Linear(*size)), 1),
    ],
)
def test_a_layer_whose_output_is_thrown_away_does_not_work_where_nothing_else_shows_it(
    make: Callable[[int, int], nn.Module], works: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    linear = nn.functional.linear
    monkeypatch.setattr(nn.functional, "linear", lambda *all: calls.append(1) or linear(*all))
    layer, x = make(6, 12), torch.randn(2, 5, 6)
    before, state = layer(x), set(vars(layer))
    calls.clear()
    with OutputSite("q", layer, HeadView.whole(4, 3)).replaced(lambda rows: torch.ones_like(rows)):
        assert torch.equal(layer(x), torch.ones(2, 5, 12))
    assert len(calls) == works
    assert set(vars(layer)) == state
    assert torch.equal(layer(x), before)


def test_what_does_not_fit_is_refused_as_ever_and_autocast_keeps_its_dtype() -> None:
    seen: list[Tensor] = []

    def ones(rows: Tensor) -> Tensor:
        seen.append(rows)
        return torch.ones_like(rows)

    layer = nn.Linear(6, 12)
    with OutputSite("q", layer, HeadView.whole(4, 3)).replaced(ones):
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            layer(torch.randn(2, 5, 7))
        with pytest.raises(RuntimeError, match="dtype"):
            layer(torch.randn(2, 5, 6, dtype=torch.float64))
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(torch.randn(2, 5, 6)).dtype == torch.bfloat16
    assert [rows.dtype for rows in seen] == [torch.bfloat16]


def test_the_last_of_two_sites_on_one_layer_holds_and_one_part_leaves_the_others_alone() -> None:
    layer, x = nn.Linear(6, 24), torch.randn(2, 5, 6)
    before = layer(x)
    queries = OutputSite("qkv", layer, HeadView(Packing("qkv").channels("q", 24, HEADS), 24))
    keys = OutputSite("qkv", layer, HeadView(Packing("qkv").channels("k", 24, HEADS), 24))
    everything = OutputSite("qkv", layer, HeadView.whole(8, 3))
    with keys.replaced(torch.zeros_like), queries.replaced(torch.ones_like):
        assert torch.equal(layer(x), torch.cat([torch.ones(2, 5, 12), torch.zeros(2, 5, 6), before[..., 18:]], -1))
    for first in (keys, everything):
        with first.replaced(torch.zeros_like), everything.replaced(torch.ones_like):
            assert torch.equal(layer(x), torch.ones(2, 5, 24))
    with everything.replaced(torch.zeros_like), queries.replaced(torch.ones_like):
        assert torch.equal(layer(x), torch.cat([torch.ones(2, 5, 12), torch.zeros(2, 5, 12)], -1))
    assert torch.equal(layer(x), before)
