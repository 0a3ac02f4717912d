"""Numpy arrays and lists for tensors."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from datasets import Dataset, List, Value

from gssf_plug.errors import ArgumentError
from gssf_plug.metric.arrays import as_array, check_has_values, float_features, like_inputs, to_tensor


def test_arrays_share_their_memory(tmp_path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    tensor = to_tensor("x", array)
    array[0, 1] = 7
    assert tensor[0, 1] == 7
    np.save(tmp_path / "x.npy", array.astype(np.float16))
    mapped = to_tensor("x", np.load(tmp_path / "x.npy", mmap_mode="r"))
    assert mapped.dtype == torch.float16
    assert mapped.tolist() == array.tolist()
    assert to_tensor("x", tensor) is tensor


@pytest.mark.parametrize(
    "value", [[[1, 2], [3, 4]], ((1.0, 2.0), (3.0, 4.0)), np.array([[1, 2], [3, 4]], dtype=">f8")[::-1][::-1],
              [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])], [np.array([1, 2]), np.array([3, 4])]]
)  # fmt: skip
def test_tables_of_numbers(value):
    features = float_features("x", value)
    assert features.tolist() == [[1, 2], [3, 4]]
    assert features.is_floating_point()


def test_negative_strides_and_whole_numbers():
    assert to_tensor("x", np.arange(3)[::-1]).tolist() == [2, 1, 0]
    assert to_tensor("x", np.arange(3)[::-1][:1]).tolist() == [2]
    assert to_tensor("x", np.arange(6).reshape(2, 3)[::-1][:1]).tolist() == [[3, 4, 5]]
    assert float_features("x", torch.tensor([True, False])).dtype == torch.float32
    assert float_features("x", [0.1, 0.2]).dtype == torch.float32
    assert float_features("x", np.array([0.1, 0.2])).dtype == torch.float64


def test_arrays_come_back_as_arrays():
    result, array = torch.ones(2, requires_grad=True), np.ones(2)
    assert isinstance(like_inputs(result, array, array), np.ndarray)
    assert like_inputs(result, array, torch.ones(2)) is result
    assert like_inputs(result, [1.0]) is result


@pytest.mark.parametrize("value", ["text", [[1, 2], [3]], None, {1: 2}, ["a"], np.array(["a"]), np.array([None]),
                                   [torch.ones(2), torch.ones(3)], object(), [10**400]])  # fmt: skip
def test_what_is_no_table_is_named(value):
    with pytest.raises(ArgumentError, match="`x` must be a tensor, a numpy array, or lists of numbers"):
        float_features("x", value)


def test_what_holds_no_real_numbers_is_named():
    with pytest.raises(ArgumentError, match="`x` must hold real numbers, densely stored, but got torch.complex64"):
        float_features("x", torch.ones(2, 2, dtype=torch.complex64))
    with pytest.raises(ArgumentError, match="`x` must hold real numbers, densely stored, but got torch.float32"):
        float_features("x", torch.ones(2, 2).to_sparse())
    with pytest.raises(ArgumentError, match="`x` must hold values, but got a tensor on the meta device"):
        check_has_values("x", torch.ones(2, device="meta"))


ROWS = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
TABLE = Dataset.from_dict({"vector": ROWS, "label": [3, 4], "inner": [{"vector": row} for row in ROWS]})
COLUMNS = {
    "plain": lambda: TABLE["vector"],
    "torch": lambda: TABLE.with_format("torch")["vector"],
    "numpy": lambda: TABLE.with_format("numpy")["vector"],
    "pandas": lambda: TABLE.with_format("pandas")["vector"],
    "arrow": lambda: TABLE.with_format("arrow")["vector"],
    "one column": lambda: TABLE.with_format("torch", columns=["vector"])["vector"],
    "transformed": lambda: TABLE.with_transform(
        lambda rows: {"vector": [2 * np.array(row) / 2 for row in rows["vector"]]}
    )["vector"],
    "inner": lambda: TABLE["inner"]["vector"],
    "chosen rows": lambda: Dataset.from_dict({"vector": [*ROWS[::-1], ROWS[0]]}).select([1, 0])["vector"],
    "of one length": lambda: TABLE.cast_column("vector", List(Value("float16"), length=3))["vector"],
    "series": lambda: pd.Series(list(np.array(ROWS))),
    "frame": lambda: pd.DataFrame(ROWS),
    "pyarrow": lambda: pa.array(ROWS),
    "objects": lambda: pd.Series(ROWS).to_numpy(),
}


@pytest.mark.parametrize("column", COLUMNS)
def test_columns_of_tables(column):
    features = float_features("x", COLUMNS[column]())
    assert features.tolist() == ROWS
    assert features.dtype in (torch.float32, torch.float64)


def test_a_plain_column_is_read_as_the_numpy_format_reads_it():
    assert as_array(TABLE["vector"]).dtype == np.float32
    assert as_array(TABLE["label"]).tolist() == [3, 4]
    listed = TABLE.to_dict()["vector"]
    assert as_array(listed) is listed


def test_ragged_columns_are_no_tables():
    for ragged in (Dataset.from_dict({"x": [[1.0], [2.0, 3.0]]})["x"], pd.Series([[1.0], [2.0, 3.0]])):
        with pytest.raises(ArgumentError, match="`x` must be a tensor, a numpy array, or lists of numbers of equal"):
            float_features("x", ragged)
