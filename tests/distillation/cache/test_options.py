"""What a cache is made of: taken as it is, or refused by name before the teacher runs."""

import pytest
import torch
from datasets import Dataset, DatasetDict

from gssf_plug.distillation import Tap
from gssf_plug.distillation.cache import options
from gssf_plug.errors import ArgumentError

pytestmark = pytest.mark.bad_input


def refuses(match, check, *given):
    with pytest.raises(ArgumentError, match=match):
        check(*given)


def test_taps_are_taps():
    tap = Tap("0")
    assert options.checked_taps({"a": tap}) == options.checked_taps(iter([tap])) == [tap]
    for wrong, got in (([], "none"), (["0"], "str"), ({"a": "0"}, "str"), ("0", "str"), (None, "NoneType")):
        refuses(f"`taps` must be a list of Taps, .* but got {got}", options.checked_taps, wrong)


def test_data_sets_have_rows_by_number():
    rows = [{"x": 1}]
    for right in (rows, Dataset.from_list(rows)):
        options.check_dataset(right)
    for wrong in (iter(rows), DatasetDict(train=Dataset.from_list(rows)), "rows", Dataset, torch.tensor(1), None):
        refuses("`dataset` must be a data set with a length and rows by number", options.check_dataset, wrong)
    refuses("`dataset` must hold at least one example", options.check_dataset, [])
    refuses("`dataset` must have rows that are mappings .* but got Tensor|int", options.check_dataset, [1])


def test_columns_are_those_of_the_rows():
    first = {"b": 1, "a": 2}
    assert options.checked_columns(None, first) == options.checked_columns(("b", "a"), first) == ["a", "b"]
    refuses("`columns` must be columns of the data set, but got 'c'", options.checked_columns, ["c"], first)
    refuses("`columns` must name at least one column", options.checked_columns, [], first)
    for wrong in ("ab", [1], 3):
        refuses("`columns` must be None or a list of names", options.checked_columns, wrong, first)
