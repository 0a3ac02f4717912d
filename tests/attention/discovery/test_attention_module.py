"""What is known of an attention module from its children alone, which of them are meant, and their verdicts."""

import re

import pytest
import torch
from attention.small_models import PlainAttention, small_bert, small_llama
from torch import nn

from gssf_plug.attention import patch_attention
from gssf_plug.attention.discovery.attention_module import AttentionModule, attention_modules, select, settle
from gssf_plug.attention.discovery.prober import Prober
from gssf_plug.errors import ArgumentError


class Indexer(PlainAttention):
    """Picks keys and mixes no values."""


class Named(nn.Module):
    """Has a query and a key, but another module has the right to these names, too: it does not say attention."""

    def __init__(self) -> None:
        super().__init__()
        self.vision_proj, self.text_proj = nn.Linear(8, 4), nn.Linear(8, 4)


def test_modules_with_a_query_and_a_key_are_found_and_nothing_is_run() -> None:
    model = nn.ModuleDict({"plain": PlainAttention(), "indexer": Indexer(), "named": Named(), "mlp": nn.Linear(8, 8)})
    found = attention_modules(model)
    assert list(found) == ["plain"]
    assert found["plain"].module is model["plain"]
    assert (found["plain"].verdict, found["plain"].reason, found["plain"].candidate) == ("untried", "", None)
    also = attention_modules(model, lambda module: module is model["mlp"])
    assert {path: bool(module.layouts) for path, module in also.items()} == {"plain": True, "mlp": False}


def test_what_hangs_below_a_patched_layer_is_passed_over() -> None:
    model = small_bert()
    paths = list(attention_modules(model))
    patch_attention(model, block_size=4)
    assert list(attention_modules(model)) == paths


def test_where_its_query_is_made_and_how_wide() -> None:
    module = attention_modules(small_llama())["model.layers.0.self_attn"]
    assert module.query is module.module.q_proj
    assert module.widths == (32, 32)
    assert {module.module.q_proj, module.module.k_proj} <= set(module.sources)
    assert module.query_path == ""


@pytest.mark.parametrize(
    ("layers", "chosen"),
    [
        (None, [0, 1]),
        ([1], [1]),
        ((number for number in (0, 1)), [0, 1]),
        (["encoder.layer.0"], [0]),
        (["encoder.layer.*.self"], [0, 1]),
        (["layer.1.attention", 0], [0, 1]),
        ({"attention"}, [0, 1]),
    ],
)
def test_layers_are_paths_parts_of_them_globs_or_numbers(layers: object, chosen: list[int]) -> None:
    modules = attention_modules(small_bert())
    assert list(select(modules, layers)) == [f"encoder.layer.{number}.attention.self" for number in chosen]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (["encoder.layer.7"], "`layers` must name attention modules, but got 'encoder.layer.7'. Did you mean"),
        (["encoder.layer.0", 7], "`layers` must name attention modules, but got 7"),
        (["encoder.layer.0.attention.sel"], "`layers` must name attention modules"),  # a part of a name is none
        ([1.0], "`layers` must be a sequence of paths or numbers, but got 1.0"),
        ([True], "`layers` must be a sequence of paths or numbers, but got True"),
        (1, "`layers` must be a sequence of paths or numbers, but got 1"),
        ("encoder", "`layers` must be a sequence"),
        ([], "`layers` must be a sequence"),
    ],
)
def test_layers_that_name_nothing(layers: object, message: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(message)):
        select(attention_modules(small_bert()), layers)


def tried(path: str, *failures: str) -> AttentionModule:
    module = attention_modules(nn.ModuleDict({path: PlainAttention()}))[path]
    module.tried = list(failures)
    return module


def test_the_reason_of_a_verdict() -> None:
    module = attention_modules(nn.ModuleDict({"a": PlainAttention()}))["a"]
    settle({"a": module}, [])
    assert (module.verdict, module.reason) == (
        "out of reach", "no example reached it; pass example_inputs= that run it"
    )  # fmt: skip
    settle({"a": module}, ["TypeError: x", "later"])
    assert module.reason.startswith("no example reached it (inputs tried: TypeError: x)")
    module = tried("a", "one", "other", "one")
    settle({"a": module}, [])
    assert (module.verdict, module.reason) == ("refused", "no layout was proven (tried: one; other)")
    module = tried("a")
    settle({"a": module}, [])
    assert module.reason == "no layout was proven (tried: no layout fits its widths and numbers of heads)"


def test_a_projection_that_two_modules_use_is_patched_once() -> None:
    model = nn.Sequential(PlainAttention(), PlainAttention())
    model[1].q_proj = model[0].q_proj
    modules = attention_modules(model)
    Prober(model, example_inputs={"input": torch.randn(1, 5, 8)}).prove(modules)
    assert [module.verdict for module in modules.values()] == ["proven", "left alone"]
    assert modules["1"].reason == "its projection belongs to '0', which is patched"
    assert modules["0"].shares_its_query_with(modules["1"])
    assert modules["0"].query_path == "q_proj"
