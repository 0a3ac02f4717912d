"""Packings by hand, and declaring a layout of one's own."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from gssf_plug.attention import Layout, layouts, patch_attention
from gssf_plug.attention.discovery.layouts import Heads, Packing
from gssf_plug.errors import ArgumentError

FOUR = Heads(4, 4, 2, 2)


@pytest.mark.parametrize(
    ("packing", "part", "width", "heads", "first_of_each_head"),
    [
        (Packing("q"), "q", 8, FOUR, [0, 2, 4, 6]),
        (Packing("qkv"), "q", 24, FOUR, [0, 2, 4, 6]),
        (Packing("qkv"), "k", 24, FOUR, [8, 10, 12, 14]),
        (Packing("qkv", "key_heads"), "q", 24, FOUR, [0, 6, 12, 18]),
        (Packing("qkv", "key_heads"), "k", 24, FOUR, [2, 8, 14, 20]),
        (Packing("qkv"), "k", 16, Heads(4, 2, 2, 2), [8, 10]),
        (Packing("qvk", 4), "k", 24, FOUR, [4, 10, 16, 22]),
        (Packing("kv", "key_heads"), "k", 20, Heads(4, 4, 3, 2), [0, 5, 10, 15]),
    ],
)
def test_channels_by_hand(packing: Packing, part: str, width: int, heads: Heads, first_of_each_head: list[int]) -> None:
    channels = packing.channels(part, width, heads)
    assert channels is not None
    assert channels[:, 0].tolist() == first_of_each_head
    assert (channels.diff(dim=1) == 1).all()


@pytest.mark.parametrize("width", [23, 25, 16])
def test_a_width_that_cannot_be_is_no_layout(width: int) -> None:
    assert Packing("qkv").channels("q", width, FOUR) is None


class OddAttention(nn.Module):
    """Asks with `asking` and is asked through `asked`."""

    num_heads = 2

    def __init__(self) -> None:
        super().__init__()
        self.asking, self.asked, self.told = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        q, k, v = (f(hidden_states).unflatten(-1, (2, 4)).transpose(1, 2) for f in (self.asking, self.asked, self.told))
        return ((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(-2)


class OddModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = OddAttention()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.attention(hidden_states)


@pytest.fixture
def _forget() -> Iterator[None]:
    yield
    for name in ("odd", "wrong"):
        layouts.unregister(name)


@pytest.mark.usefixtures("_forget")
def test_unknown_attention_is_refused_and_a_declared_layout_is_proven() -> None:
    model, x = OddModel(), torch.randn(2, 5, 8)
    with pytest.raises(ArgumentError, match=r"layouts\.register\(Layout"):
        patch_attention(model, block_size=2, example_inputs={"hidden_states": x})
    layouts.register(Layout("odd", query="asking", key="asked"))
    patch = patch_attention(model, block_size=2, example_inputs={"hidden_states": x})
    assert patch.layers["attention"].metric_layer.layout == "odd"
    patch.remove()
    assert {*model.state_dict()} == {*OddModel().state_dict()}


@pytest.mark.usefixtures("_forget")
def test_a_wrong_declaration_is_disproven_with_what_was_tried() -> None:
    model, x = OddModel(), torch.randn(2, 5, 8)
    layouts.register(Layout("wrong", query="asking", key="told"))
    with pytest.raises(ArgumentError, match="'attention', where no layout was proven .tried: wrong, 2 heads of 4"):
        patch_attention(model, block_size=2, example_inputs={"hidden_states": x})
    assert not any("gssf" in name for name, _ in model.named_modules())


def test_names_are_unique() -> None:
    with pytest.raises(ArgumentError, match="`layout` must have a new name, but got 'q_proj'"):
        layouts.register(Layout("q_proj", query="q_proj", key="k_proj"))
