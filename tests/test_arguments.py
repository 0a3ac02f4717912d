"""What an argument must be: each check takes what is right, gives it in one type, and refuses the rest by name."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from gssf_plug import arguments
from gssf_plug.errors import ArgumentError

pytestmark = pytest.mark.bad_input


def refuses(match, check, *given, **named):
    with pytest.raises(ArgumentError, match=match):
        check(*given, **named)


@pytest.mark.parametrize("value", [3, np.int64(3), torch.tensor(3)])
def test_whole_numbers_of_any_library_become_ints(value):
    found = arguments.checked_count("k", value, "")
    assert type(found) is int
    assert found == 3


@pytest.mark.parametrize("value", [0, -1, 2.0, "3", True, None, torch.ones(2), float("nan")])
def test_what_is_no_count_is_refused(value):
    refuses("`k` must be at least 1, but got .*. Ask for more.", arguments.checked_count, "k", value, "Ask for more.")
    refuses("`k` must be a whole number of at least 1", arguments.check_positive, "k", value, "")


def test_a_count_within_bounds():
    assert arguments.checked_count("k", 0, "", least=0) == 0
    refuses(
        "`k` must lie in 2 … 4, but got 5", arguments.checked_count, "k", 5, "", rule="lie in 2 … 4", least=2, most=4
    )


def test_numbers_that_are_right():
    def above(value):
        return value > 1

    assert arguments.checked_number("x", np.float32(1.5), "be above 1", "", above) == 1.5
    assert type(arguments.checked_number("x", 2, "be above 1", "", above)) is float
    for wrong in (1, float("nan"), float("inf"), "2", True, None, 2j):
        refuses("`x` must be above 1, but got", arguments.checked_number, "x", wrong, "be above 1", "", above)


def test_flags_are_no_texts_and_no_numbers():
    for right in (True, False, np.bool_(True)):
        arguments.checked_flag("normalize", right)
    for wrong in ("False", 0, 1, None):
        refuses("`normalize` must be True or False, but got", arguments.checked_flag, "normalize", wrong)


def test_seeds_are_what_generators_take():
    assert arguments.checked_seed(np.int64(3)) == 3
    torch.Generator().manual_seed(arguments.checked_seed(2**63 - 1))
    for wrong in (-1, 2**63, 1.0, "0", None, True, np.True_):
        refuses("`seed` must be at least 0, but got", arguments.checked_seed, wrong)


def test_words_are_strings_and_choices_known_ones():
    arguments.check_text("ids", "label", "be a column", "")
    refuses("`ids` must be a column, but got bytes", arguments.check_text, "ids", b"label", "be a column", "")
    arguments.check_choice("split", "train", ("train", "test"))
    refuses("`split` must be one of .*Did you mean 'train'", arguments.check_choice, "split", "trian", ["train", "x"])
    for wrong in (None, ["train"], 1):
        refuses("`split` must be one of", arguments.check_choice, "split", wrong, ("train", "test"))


def test_paths_are_strings_or_path_objects():
    for right in ("folder", Path("folder")):
        arguments.check_path("root", right)
    for wrong in (None, 1, b"folder", "", "a\0b", ["folder"]):
        refuses("`root` must be a path, but got", arguments.check_path, "root", wrong)


def test_modules_are_objects_and_not_classes():
    arguments.check_module("encoder", nn.Identity(), "")
    arguments.check_module("encoder", None, "", optional=True)
    refuses("`encoder` must be a module of torch.nn, but got NoneType", arguments.check_module, "encoder", None, "")
    refuses("must be None or a module .* the class Linear", arguments.check_module, "x", nn.Linear, "", optional=True)


def test_functions_take_as_many_arguments_as_they_are_called_with():
    for right in (lambda a, b: a, lambda *a: a, lambda a, b=1: a, max, nn.Bilinear(1, 1, 1), GivesTwo()):
        arguments.check_function("score", right, "", takes=2)
    arguments.check_function("score", None, "", takes=2, optional=True)
    refuses("`score` must be a function, but got int", arguments.check_function, "score", 3, "", takes=2)
    for wrong in (lambda a: a, lambda a, b, *, c: a, len, nn.Linear(1, 1)):
        refuses("`score` must be a function of 2 arguments", arguments.check_function, "score", wrong, "", takes=2)


class GivesTwo:
    def __call__(self, one, other):
        return one


@pytest.mark.filterwarnings("ignore::UserWarning")  # sparse and quantized tensors are said to be young, or old
def test_dense_tensors_hold_their_values_in_their_places():
    for right in (torch.ones(2), torch.ones(2, 2).T, nn.Parameter(torch.ones(1))):
        assert arguments.holds_floats(right)
    strange = [
        torch.eye(2).to_sparse(),
        torch.eye(2).to_sparse_csr(),
        torch.empty(2, device="meta"),
        torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8),
        torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
        np.ones(2),
    ]
    assert not any(map(arguments.is_dense, strange))
    assert not any(map(arguments.holds_floats, [torch.ones(2).to(torch.float8_e4m3fn), torch.ones(2).bool()]))
    assert [arguments.holds_whole_numbers(torch.ones(2).to(kind)) for kind in (torch.uint8, torch.bool)] == [
        True,
        False,
    ]


def test_what_came_is_told_in_few_words():
    told = {
        "NoneType": None,
        "str": "a",
        "the class Linear": nn.Linear,
        "Linear": nn.Linear(1, 1),
        "an array of int64 of shape (2,)": np.arange(2),
        "torch.float32 of shape (2,)": torch.ones(2),
        "torch.float32 of shape (2,) on the meta device": torch.ones(2, device="meta"),
        "torch.float32 of layout torch.sparse_coo of shape (2, 2)": torch.eye(2).to_sparse(),
    }
    assert [arguments.described(value) for value in told.values()] == list(told)
    ragged = torch.nested.nested_tensor([torch.ones(2)], layout=torch.jagged)
    assert arguments.described(ragged) == "a nested tensor of torch.float32"
