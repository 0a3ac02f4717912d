"""Digests of what teacher features are made from: a model's weights, an example's content, a tap's description."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gssf_plug.distillation.paths import unwrap
from gssf_plug.distillation.taps import Tap
from gssf_plug.errors import ArgumentError

__all__ = ["digest_row", "digest_weights", "tap_key"]


def digest_weights(model: nn.Module) -> str:
    """SHA-256 of every parameter and buffer of the plain model: names, dtypes, shapes, bytes."""
    whole = hashlib.sha256()
    for name, tensor in sorted(unwrap(model).state_dict().items()):
        if isinstance(tensor, Tensor):
            whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            whole.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return whole.hexdigest()


def digest_row(example: Mapping[str, Any], columns: Iterable[str]) -> int:
    """A 63-bit digest of an example's columns: texts, numbers, lists, arrays, tensors, images."""
    whole = hashlib.blake2b(digest_size=8)
    for column in columns:
        if column not in example:
            raise ArgumentError(
                "columns", "be columns of the data set", repr(column), f"A row has {sorted(map(str, example))}."
            )
        whole.update(column.encode() + b"\0")
        _update(whole, example[column])
    return int.from_bytes(whole.digest(), "little") >> 1


def tap_key(tap: Tap) -> dict[str, Any]:
    """A tap as JSON; a pooling by its qualified name."""
    pooling = tap.pooling
    named = getattr(pooling, "__qualname__", type(pooling).__qualname__)
    return {
        "path": tap.path,
        "output": tap.output,
        "pooling": None if pooling is None else f"{getattr(pooling, '__module__', '')}.{named}",
        "token": tap.token,
        "masked": tap.masked,
    }


def _update(whole: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray) or hasattr(value, "__array_interface__"):  # arrays and PIL images
        array = np.ascontiguousarray(value)
        whole.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
    elif isinstance(value, list | tuple):
        whole.update(f"[{len(value)}".encode())
        for part in value:
            _update(whole, part)
    elif isinstance(value, Mapping):
        _update(whole, [part for key in sorted(value) for part in (key, value[key])])
    else:
        whole.update(f"{type(value).__name__} {value!r};".encode())
