"""What a user may hand over for a tensor: numpy arrays, memory-mapped ones too, lists, and columns of tables.

Arrays give arrays back, everything else tensors.

Nothing is copied that torch can read where it lies. What has no clear meaning (complex numbers, texts, ragged lists,
tensors without values) is refused by name.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gssf_plug.arguments import FLOATS, described
from gssf_plug.errors import ArgumentError

__all__ = [
    "Array",
    "as_array",
    "check_broadcast",
    "check_has_values",
    "check_real",
    "checked_device",
    "float_features",
    "like_inputs",
    "to_tensor",
]

Array = Tensor | np.ndarray


def as_array(value: object) -> object:
    """What the column of a table holds; anything else as it is.

    A column of a `datasets.Dataset` comes in the format of its data set, and where that has none, as its numpy format
    gives it, in float32. What numpy reads as an array (columns of pandas, polars and pyarrow, h5py, jax) becomes one,
    and one whose entries are rows of equal length becomes a matrix.
    """
    if isinstance(value, Tensor | list | tuple | np.generic | type):
        return value
    if isinstance(value, Sequence) and hasattr(value, "column_name"):
        value = _of_data_set(value)
    if not isinstance(value, Tensor | np.ndarray) and hasattr(value, "__array__"):
        value = np.asarray(value)
    rows_inside = isinstance(value, np.ndarray) and value.dtype == object and value.ndim == 1
    return _stacked(value) if rows_inside else value


def _of_data_set(column: Any) -> object:
    """The values of a `datasets` column."""
    settings = getattr(column.source, "format", None)  # of a data set; a column within a column has none
    unformatted = settings is not None and settings["type"] is None
    # as Python's lists, numbers would take thirty bytes each
    return column.source.with_format("numpy")[column.column_name][:] if unformatted else column[:]


def _stacked(rows: Any) -> object:
    """A matrix of the entries, where all are rows of one length."""
    if not len(rows) or not all(isinstance(row, np.ndarray | list | tuple) for row in rows):
        return rows
    try:
        return np.stack([np.asarray(row) for row in rows])
    except ValueError:
        return rows


def to_tensor(name: str, value: object) -> Tensor:
    """A tensor that shares the memory of a numpy array; lists are copied.

    Args:
        name: name of the argument, as the caller writes it.
        value: a tensor (which is returned as it is), an array, a number, lists of numbers of equal length, or the
            column of a table (see `as_array`).

    Raises:
        ArgumentError: the value is none of these.
    """
    if isinstance(value, Tensor):
        return value
    array = as_array(value)
    array = array if isinstance(array, Tensor | np.ndarray) else _from_lists(name, array)
    if isinstance(array, Tensor):  # a column in torch's format; a list of tensors
        return array
    if array.dtype.kind not in "fiubc":
        raise _no_array(name, f"an array of {array.dtype}")
    array = array.astype(array.dtype.newbyteorder("="), copy=False)  # torch reads the machine's own byte order
    if any(stride < 0 for stride in array.strides):
        array = array.copy()  # `ascontiguousarray` leaves one of a single row as it is
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # it is only read
            return torch.from_numpy(array)
    except TypeError:
        raise _no_array(name, f"an array of {array.dtype}") from None


def _from_lists(name: str, value: object) -> Tensor | np.ndarray:
    if not isinstance(value, list | tuple | int | float | np.generic):
        raise _no_array(name, type(value).__name__)
    if isinstance(value, list | tuple) and value and all(isinstance(part, Tensor) for part in value):
        try:
            return torch.stack(list(value))
        except (RuntimeError, TypeError):
            raise _no_array(name, f"a {type(value).__name__} of tensors that differ") from None
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError):
        raise _no_array(name, f"a {type(value).__name__} that is no table of numbers") from None
    return array.astype(np.float32) if array.dtype == np.float64 else array  # as torch.tensor reads lists


def float_features(name: str, value: object) -> Tensor:
    """Features as a floating-point tensor: whole numbers and booleans are converted to torch's default dtype.

    Raises:
        ArgumentError: the value is no array of real numbers, or is sparse, nested, quantized or of eight-bit floats.
    """
    features = to_tensor(name, value)
    check_real(name, features)
    return features if features.is_floating_point() else features.to(torch.get_default_dtype())


def check_real(name: str, tensor: Tensor) -> None:
    """Refuse what arithmetic is not defined for, or what has no rows of equal length.

    Raises:
        ArgumentError: the tensor is complex, sparse, nested, quantized, or of eight-bit floats.
    """
    strange = tensor.layout != torch.strided or tensor.is_nested or tensor.is_quantized or tensor.is_complex()
    if strange or (tensor.is_floating_point() and tensor.dtype not in FLOATS):
        remedy = "Convert it, for instance with .to_dense() or .float()."
        raise ArgumentError(name, "hold real numbers, densely stored", described(tensor), remedy)


def check_broadcast(names: tuple[str, str], shapes: tuple[Sequence[int], Sequence[int]]) -> None:
    """Dimensions of two sides that stand above each other are equal, or one of them is 1.

    Raises:
        ArgumentError: two dimensions differ; the second side is named.
    """
    for one, other in zip(reversed(shapes[0]), reversed(shapes[1]), strict=False):
        if one != other and one != 1 and other != 1:
            rule = f"have leading dimensions that suit those of `{names[0]}`, {tuple(shapes[0])}"
            remedy = "Give as many rows on both sides, or one row."
            raise ArgumentError(names[1], rule, tuple(shapes[1]), remedy)


def check_has_values(name: str, tensor: Tensor) -> None:
    """Refuse a tensor on the meta device.

    Raises:
        ArgumentError: the tensor has a shape and no values.
    """
    if tensor.is_meta:
        raise ArgumentError(name, "hold values", "a tensor on the meta device", "Load it, or move it to a real device.")


def checked_device(name: str, device: object) -> torch.device | None:
    """None, or a device of this machine, as torch names it.

    Raises:
        ArgumentError: the value names no device, a device that is not here, or "meta", which holds no values.
    """
    if device is None:
        return None
    try:
        known = torch.device(device)  # type: ignore[call-overload]
        if known.type == "meta" or isinstance(device, bool):
            raise TypeError
        torch.empty(0, device=known)
    except (AssertionError, NotImplementedError, RuntimeError, TypeError, ValueError):
        remedy = "Such as 'cpu' or 'cuda:0'; None takes the default."
        raise ArgumentError(name, "be None or a device of this machine", repr(device), remedy) from None
    return known


def like_inputs(result: Tensor, *inputs: object) -> Array:
    """`result` as a numpy array where numpy arrays were given and no tensor was, otherwise as it is."""
    if any(isinstance(one, Tensor) for one in inputs) or not any(isinstance(one, np.ndarray) for one in inputs):
        return result
    return result.detach().cpu().numpy()


def _no_array(name: str, got: str) -> ArgumentError:
    rule = "be a tensor, a numpy array, or lists of numbers of equal length"
    return ArgumentError(name, rule, got, "Convert it with torch.as_tensor(...).")
