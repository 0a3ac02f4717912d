"""Digests of what teacher features are made from: a model's weights, an example's content, a tap's description."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn

from gssf_plug.distillation.taps import Tap
from gssf_plug.errors import ArgumentError
from gssf_plug.wrappers import unwrap

__all__ = ["digest_architecture", "digest_inputs", "digest_row", "digest_weights", "tap_key"]

PASSING = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "architectures")  # of a configuration


def digest_weights(model: nn.Module) -> str:
    """SHA-256 of every parameter and buffer of the plain model: names, dtypes, shapes, bytes; quantised ones too.

    Offloaded ones are brought in one after the other. The digest is that of the same model in memory.
    """
    whole, plain = hashlib.sha256(), unwrap(model)
    for name, value in sorted(plain.state_dict().items()):
        whole.update(name.encode() + b"\0")
        if isinstance(value, Tensor) and value.is_meta:
            path, _, leaf = name.rpartition(".")
            holder = plain.get_submodule(path)
            with align_module_device(holder):
                _update_state(whole, getattr(holder, leaf))
        else:
            _update_state(whole, value)
    return whole.hexdigest()


def digest_architecture(model: nn.Module) -> str:
    """SHA-256 of what the weights do not say: the modules as printed, and a transformers configuration."""
    plain = unwrap(model)
    described: Any = getattr(plain, "config", None)
    config = described.to_dict() if hasattr(described, "to_dict") else {}
    kept = {key: value for key, value in config.items() if key not in PASSING}
    return hashlib.sha256(f"{plain!r} {sorted(kept.items())!r}".encode()).hexdigest()


def digest_inputs(inputs: Any) -> str:
    """SHA-256 of what a teacher is called with."""
    whole = hashlib.sha256()
    _update(whole, inputs)
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
    """A tap as JSON; a pooling function by its qualified name, a pooling module by its form and weights.

    Raises:
        ArgumentError: the pooling has neither a name nor weights of its own: a lambda, a partial, a function inside a
            function.
    """
    return {
        "path": tap.path,
        "output": tap.output,
        "pooling": _pooling_key(tap),
        "token": tap.token,
        "masked": tap.masked,
    }


def _pooling_key(tap: Tap) -> str | None:
    pooling = tap.pooling
    if pooling is None:
        return None
    if isinstance(pooling, nn.Module):
        return f"{pooling!r} {digest_weights(pooling)}"
    name = f"{getattr(pooling, '__module__', '')}.{getattr(pooling, '__qualname__', '<unnamed>')}"
    if "<" in name:
        raise ArgumentError(
            "pooling",
            "have a name of its own where features are cached, or another one could pass for it",
            f"{name} for '{tap.path}'",
            "Define it as a function of a module, such as gssf_plug.features.mean_pool, or as an nn.Module.",
        )
    return name


def _update(whole: Any, value: Any) -> None:
    """Content: the same numbers count as the same, be they a list, an array or a tensor of any width."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = (value.double() if value.is_floating_point() else value).numpy()
    if isinstance(value, list | tuple) and value and all(isinstance(part, int | float) for part in value):
        value = np.asarray(value)
    if isinstance(value, np.ndarray | np.generic | int | float) or hasattr(value, "__array_interface__"):  # and PIL
        array = np.ascontiguousarray(value)
        # widened before it is hashed: 32 bits or 64, the numbers are the same example
        array = array.astype({"f": np.float64, "i": np.int64, "u": np.int64, "b": np.int64}.get(array.dtype.kind))
        whole.update(f"{array.dtype} {np.shape(value)}".encode() + array.tobytes())
    elif isinstance(value, list | tuple):
        whole.update(f"[{len(value)}".encode())
        for part in value:
            _update(whole, part)
    elif isinstance(value, Mapping):
        _update(whole, [part for key in sorted(value) for part in (key, value[key])])
    else:
        whole.update(f"{type(value).__name__} {value!r};".encode())


def _update_state(whole: Any, value: Any) -> None:
    """An entry of a state dict, to the bit: a tensor, a quantised one, or what packs several."""
    if isinstance(value, list | tuple):
        for part in value:
            _update_state(whole, part)
    elif not isinstance(value, Tensor):
        whole.update(f"{value!r};".encode())
    elif hasattr(value, "__tensor_flatten__"):  # as torchao's
        names, rest = value.__tensor_flatten__()
        _update_state(whole, [repr(rest), *[part for name in names for part in (name, getattr(value, name))]])
    elif value.is_quantized:
        _update_state(whole, [value.int_repr(), value.dequantize()])
    else:
        whole.update(f"{value.dtype} {tuple(value.shape)}".encode())
        whole.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
