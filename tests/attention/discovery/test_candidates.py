"""Every way to read an attention module: numbers of heads that it names and its widths allow, likeliest first."""

import pytest
import torch
from torch import Size, nn

from gssf_plug.attention.discovery.attention_module import attention_modules
from gssf_plug.attention.discovery.candidates import candidates
from gssf_plug.attention.discovery.layouts import Heads
from gssf_plug.attention.discovery.query_access import OutputSite, WeightSite


class Attention(nn.Module):
    """Linear maps of these widths, and whatever numbers it is given."""

    def __init__(self, widths: dict[str, int], **numbers: int) -> None:
        super().__init__()
        for name, width in widths.items():
            self.add_module(name, nn.Linear(8, width))
        for name, number in numbers.items():
            setattr(self, name, number)


def read(module: nn.Module, *, after_norm: bool = True, shapes: dict[str, Size] | None = None):
    (found,) = attention_modules(nn.Sequential(module)).values()
    ran = {child: Size((1, 5, child.out_features)) for child in module.children() if isinstance(child, nn.Linear)}
    ran |= {getattr(module, name): shape for name, shape in (shapes or {}).items()}
    return list(candidates(module, found.layouts, ran, after_norm=after_norm))


@pytest.mark.parametrize(
    ("widths", "numbers", "heads"),
    [
        ({"q_proj": 16, "k_proj": 16}, {"num_heads": 4}, Heads(4, 4, 4, 4)),
        ({"q_proj": 16, "k_proj": 8}, {"num_heads": 4}, Heads(4, 2, 4, 4)),  # grouped keys
        ({"q_proj": 16, "k_proj": 16}, {"head_dim": 8}, Heads(2, 2, 8, 8)),  # numbers that follow from a size
        ({"q_proj": 16, "k_proj": 16}, {}, Heads(1, 1, 16, 16)),
        ({"c_attn": 48}, {"num_heads": 4}, Heads(4, 4, 4, 4)),
        ({"qkv_proj": 32}, {"num_heads": 4, "num_key_value_heads": 2, "head_dim": 4}, Heads(4, 2, 4, 4)),
    ],
)
def test_heads_come_from_names_and_widths(widths: dict[str, int], numbers: dict[str, int], heads: Heads) -> None:
    assert heads in [candidate.heads for candidate in read(Attention(widths, **numbers))]


def test_what_the_widths_rule_out_is_no_candidate() -> None:
    assert read(Attention({"q_proj": 15, "k_proj": 15}, num_heads=4)) == []
    assert read(Attention({"q_proj": 16, "k_proj": 12}, num_heads=2)) == []  # a key head is as wide as a query head


def test_the_two_packings_of_one_width_are_both_tried() -> None:
    module = Attention({"query_key_value": 48}, num_heads=4)
    first_channels = {str(candidate.query.view.index[:8].tolist()) for candidate in read(module)}
    assert {"[0, 1, 2, 3, 4, 5, 6, 7]", "[0, 1, 2, 3, 12, 13, 14, 15]"} <= first_channels  # thirds; head by head


def test_a_query_norm_is_read_first_where_it_is_asked_for() -> None:
    module = Attention({"q_proj": 16, "k_proj": 16}, num_heads=4)
    module.q_norm = nn.LayerNorm(4)
    shapes = {"q_norm": Size((1, 4, 5, 4))}
    after = read(module, shapes=shapes)
    assert after[0].norm == "q_norm"
    assert after[0].query.module is module.q_norm
    assert after[0].query.view.head_axis == -3
    assert str(after[0]) == "q_proj after q_norm, 4 heads of 4"
    before = read(module, after_norm=False, shapes=shapes)
    assert all(candidate.norm is None for candidate in before)
    assert before[0].query.module is module.q_proj


def test_a_projection_that_is_never_called_is_changed_in_its_weight() -> None:
    module = Attention({"q_proj": 16, "k_proj": 16}, num_heads=4)
    (found,) = attention_modules(nn.Sequential(module)).values()
    ran = {module.k_proj: Size((1, 5, 16))}
    site = next(candidates(module, found.layouts, ran, after_norm=True)).query
    assert isinstance(site, WeightSite)
    assert set(site.views) == {"weight", "bias"}
    assert isinstance(read(module)[0].query, OutputSite)


def test_torchs_own_attention_has_one_bias_for_all() -> None:
    module = nn.MultiheadAttention(8, 2)
    (found,) = attention_modules(nn.Sequential(module)).values()
    site = next(candidates(module, found.layouts, {}, after_norm=True)).query
    assert isinstance(site, WeightSite)
    assert site.views["in_proj_weight"].index.tolist() == list(range(8))
    assert torch.equal(site.views["in_proj_bias"].index, site.views["in_proj_weight"].index)
