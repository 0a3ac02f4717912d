"""The options of an adapter: what each check takes and refuses by name, and the metric that they describe."""

import pytest
import torch

from gssf_plug.attention.discovery.layouts import Heads
from gssf_plug.attention.options import AdapterOptions, check_adapter_name, check_dtype, check_example, check_places
from gssf_plug.errors import ArgumentError

pytestmark = pytest.mark.bad_input
HEADS = Heads(4, 2, 8, 8)


def refuses(match, check, *given):
    with pytest.raises(ArgumentError, match=match):
        check(*given)


@pytest.mark.parametrize("per_head", [True, False])
@pytest.mark.parametrize("terms", [("diagonal",), ("block_diagonal",), ("diagonal", "block_diagonal"), ("dense",)])
def test_the_metric_is_neutral_and_mixes_no_two_heads(terms, per_head):
    metric = AdapterOptions.of(terms, 4, per_head).metric(HEADS)
    width = 32 if per_head else 8
    assert torch.equal(metric.matrix(), torch.eye(width))
    assert not metric.normalize
    for parameter in metric.parameters():
        torch.nn.init.normal_(parameter)
    size = {"dense": 8, "block_diagonal": 4}.get(terms[-1], 1)
    blocks = torch.block_diag(*[torch.ones(size, size)] * (width // size)).bool()
    assert torch.equal(metric.matrix() != 0, blocks)


def test_terms_come_in_any_collection():
    assert AdapterOptions.of((term for term in ("diagonal",)), 4, True).terms == ("diagonal",)
    for wrong in ("diagonal", 3, (), (3,), None):
        refuses("`terms` must be a tuple of different term names, but got", AdapterOptions.of, wrong, 4, True)
    refuses("but got 'diag'. Did you mean 'diagonal'", AdapterOptions.of, ("diag",), 4, True)
    refuses("`terms` must not hold both", AdapterOptions.of, ("dense", "block_diagonal"), 4, True)


def test_the_other_options():
    for wrong in (0, 2.0, True, "4"):
        refuses("`block_size` must be a whole number of at least 1", AdapterOptions.of, ("diagonal",), wrong, True)
    refuses("`per_head` must be True or False, but got 'no'", AdapterOptions.of, ("diagonal",), 4, "no")


def test_blocks_divide_every_head():
    sizes = {"a": 8, "b": 12}
    AdapterOptions.of(("block_diagonal",), 4, True).check_fits(sizes)
    AdapterOptions.of(("diagonal",), 5, True).check_fits(sizes)  # has no blocks
    wrong = AdapterOptions.of(("block_diagonal",), 8, True)
    refuses(r"divide the head dimension 12 of 'b', but got 8. Use one of \[1, 2, 4\]", wrong.check_fits, sizes)


def test_places():
    for right in (("projection", "after"), ("projection", "before"), ("score", "after")):
        check_places(*right)
    refuses("`sites` must be 'projection' or 'score', but got 'scores'", check_places, "scores", "after")
    refuses("`query_norm` must be 'after' where sites='score'", check_places, "score", "before")
    refuses("`query_norm` must be 'after' or 'before', but got 'behind'", check_places, "projection", "behind")
    refuses("`sites` must be 'projection' or 'score', but got None", check_places, None, "after")


def test_examples_are_arguments_by_name():
    check_example(None)
    check_example({"input_ids": torch.ones(1, 2)})
    for wrong in ([1], "input_ids", {3: 1}, torch.ones(1, 2)):
        refuses("`example_inputs` must hold arguments by name, but got", check_example, wrong)


def test_dtypes_are_those_of_parameters():
    check_dtype(None)
    check_dtype(torch.bfloat16)
    for wrong in ("float32", torch.int8, torch.complex64, float):
        refuses("`dtype` must be a floating-point dtype of torch", check_dtype, wrong)


def test_names_can_stand_in_a_path():
    check_adapter_name("default_2")
    for wrong in ("a.b", "", 3, None, "values"):  # a ModuleDict has `values` of its own
        refuses("`adapter_name` must be a plain name without dots", check_adapter_name, wrong)
