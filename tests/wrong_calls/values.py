"""What people hand over by mistake: things that are wrong nearly everywhere, and changes of what was right."""

import collections
import decimal
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from gssf_plug import GSSFMetric

__all__ = ["CHANGES", "VALUES", "Change", "Value"]


class Value(NamedTuple):
    """Something that is handed over: made anew for each call.

    `kind` names the type that the annotation must hold for a call to succeed with it; None leaves that open, since the
    value is right for some parameters.
    """

    name: str
    make: Callable[[], Any]
    kind: type | None = None


class Change(NamedTuple):
    """What becomes of a right argument of some type; `kind` as in `Value`."""

    name: str
    of: type | tuple[type, ...]
    make: Callable[[Any], Any]
    kind: type | None = None


class Tagged(Tensor):
    """A tensor class of somebody's own."""


def _objects(*values: Any) -> np.ndarray:
    made = np.empty(len(values), dtype=object)
    made[:] = values
    return made


def _quantized() -> Tensor:
    return torch.quantize_per_tensor(torch.ones(6, 8), 0.1, 0, torch.quint8)


VALUES = [
    Value("None", lambda: None, type(None)),
    Value("a word", lambda: "no such word", str),
    Value("a number as text", lambda: "4", str),
    Value("no text", lambda: "", str),
    Value("bytes", lambda: b"4", bytes),
    Value("a path", lambda: pathlib.Path("nowhere")),
    Value("an object", object, object),
    Value("a class", lambda: GSSFMetric, object),
    Value("a complex number", lambda: 1j, complex),
    Value("a decimal", lambda: decimal.Decimal("1.5"), object),
    Value("True", lambda: True, bool),
    Value("NaN", lambda: float("nan"), object),
    Value("infinity", lambda: float("inf"), object),
    Value("-infinity", lambda: float("-inf"), object),
    Value("-1", lambda: -1),
    Value("0", lambda: 0),
    Value("1.5", lambda: 1.5, float),
    Value("-0.5", lambda: -0.5),
    Value("1e308", lambda: 1e308),
    Value("2**70", lambda: 2**70),
    Value("-2**70", lambda: -(2**70)),
    Value("10**400", lambda: 10**400),
    Value("numpy integer", lambda: np.int64(2)),
    Value("numpy number", lambda: np.float32(0.5)),
    Value("numpy truth", lambda: np.bool_(True)),
    Value("array of no dimension", lambda: np.array(2)),
    Value("tensor of one whole number", lambda: torch.tensor(2)),
    Value("tensor of one truth value", lambda: torch.tensor(True)),
    Value("[]", list),
    Value("[1]", lambda: [1]),
    Value("[[1.0], [2.0, 3.0]]", lambda: [[1.0], [2.0, 3.0]]),
    Value("['a', 'b']", lambda: ["a", "b"]),
    Value("(NaN, NaN)", lambda: (float("nan"), float("nan"))),
    Value("(None, None)", lambda: (None, None)),
    Value("[2**70]", lambda: [2**70]),
    Value("{}", dict),
    Value("{'a': 1}", lambda: {"a": 1}),
    Value("OrderedDict(a=1)", lambda: collections.OrderedDict(a=1)),
    Value("{1: None}", lambda: {1: None}),
    Value("{'a', 1}", lambda: {"a", 1}),
    Value("a generator", lambda: (number for number in range(3))),
    Value("a range", lambda: range(3)),
    Value("a function", lambda: len),
    Value("a function of nothing", lambda: lambda: None),
    Value("a dtype", lambda: torch.int64),
    Value("a device", lambda: torch.device("meta")),
    Value("a layer", lambda: nn.Linear(2, 2)),
    Value("no dimension", lambda: torch.tensor(1.0)),
    Value("1-D", lambda: torch.zeros(8)),
    Value("3-D", lambda: torch.zeros(2, 6, 8)),
    Value("no rows", lambda: torch.zeros(0, 8)),
    Value("no columns", lambda: torch.zeros(6, 0)),
    Value("no scores", lambda: torch.zeros(0, 0)),
    Value("another width", lambda: torch.zeros(6, 5)),
    Value("NaN matrix", lambda: torch.full((6, 8), float("nan")), Tensor),
    Value("infinite matrix", lambda: torch.full((6, 8), float("inf")), Tensor),
    Value("complex matrix", lambda: torch.zeros(6, 8, dtype=torch.complex64), complex),
    Value("meta matrix", lambda: torch.empty(6, 8, device="meta"), object),
    Value("meta labels", lambda: torch.empty(6, dtype=torch.long, device="meta"), object),
    Value("sparse matrix", lambda: torch.eye(6, 8).to_sparse()),
    Value("matrix of sparse rows", lambda: torch.eye(6, 8).to_sparse_csr()),
    Value("nested tensor", lambda: torch.nested.nested_tensor([torch.ones(6, 8), torch.ones(3, 8)]), object),
    Value("ragged tensor", lambda: torch.nested.nested_tensor([torch.ones(6), torch.ones(3)], layout=torch.jagged)),
    Value("quantized matrix", _quantized, object),
    Value("matrix of 8-bit floats", lambda: torch.ones(6, 8).to(torch.float8_e4m3fn)),
    Value("whole matrix", lambda: torch.ones(6, 8, dtype=torch.long)),
    Value("boolean matrix", lambda: torch.ones(6, 8, dtype=torch.bool)),
    Value("half matrix", lambda: torch.ones(6, 8, dtype=torch.float16)),
    Value("negative labels", lambda: torch.full((6,), -5)),
    Value("unsigned labels", lambda: torch.ones(6, dtype=torch.uint64)),
    Value("huge labels", lambda: torch.full((6,), 2**62)),
    Value("labels of float", lambda: torch.full((6,), 0.5)),
    Value("array of objects", lambda: _objects(1, "a", None, 2.0, [], {})),
    Value("array of texts", lambda: np.array([["a"] * 8] * 6)),
    Value("array of dates", lambda: np.zeros((6, 8), dtype="datetime64[s]")),
    Value("array of records", lambda: np.zeros(6, dtype=[("a", int), ("b", float)])),
    Value("array of long floats", lambda: np.zeros((6, 8), dtype=np.longdouble)),
    Value("masked array", lambda: np.ma.masked_array(np.zeros((6, 8)), mask=np.ones((6, 8)))),
    Value("list of objects", lambda: [[object()] * 8] * 6),
]


def _lines(value: Tensor) -> Tensor:
    return value[None] if value.ndim == 0 else value


def _mapped(change: Callable[[Any], Any]) -> Callable[[Mapping[Any, Any]], dict[Any, Any]]:
    return lambda value: {key: change(one) for key, one in value.items()}


CHANGES = [
    Change("a row less", Tensor, lambda x: _lines(x)[:-1]),
    Change("a row more", Tensor, lambda x: torch.cat([_lines(x), _lines(x)[:1]])),
    Change("no row", Tensor, lambda x: _lines(x)[:0]),
    Change("a column less", Tensor, lambda x: _lines(x)[..., :-1]),
    Change("turned", Tensor, lambda x: _lines(x).transpose(0, -1)),
    Change("a dimension more", Tensor, lambda x: x[None]),
    Change("a dimension less", Tensor, lambda x: _lines(x)[0]),
    Change("in float64", Tensor, Tensor.double),
    Change("in bfloat16", Tensor, Tensor.bfloat16),
    Change("in int8", Tensor, lambda x: x.to(torch.int8)),
    Change("in bool", Tensor, Tensor.bool),
    Change("with a gradient", Tensor, lambda x: x.float().requires_grad_()),
    Change("as a parameter", Tensor, lambda x: nn.Parameter(x.float())),
    Change("of a class of its own", Tensor, lambda x: x.as_subclass(Tagged)),
    Change("on meta", Tensor, lambda x: x.to("meta")),
    Change("as an array", Tensor, lambda x: x.numpy()),
    Change("as an array of objects", Tensor, lambda x: x.numpy().astype(object)),
    Change("as lists", Tensor, lambda x: x.tolist()),
    Change("row by row", Tensor, lambda x: iter(_lines(x))),
    Change("as text", (int, float), str, str),
    Change("a half more", int, lambda x: x + 0.5, float),
    Change("negative", (int, float), lambda x: -x),
    Change("a thousand times", (int, float), lambda x: x * 1000),
    Change("as a float", int, float),
    Change("as a tensor", (int, float), torch.tensor),
    Change("in a list", (int, float, str), lambda x: [x]),
    Change("in capitals", str, str.upper),
    Change("as bytes", str, str.encode, bytes),
    Change("as a path", str, pathlib.Path),
    Change("with a blank", str, lambda x: f"{x} "),
    Change("one less", (list, tuple), lambda x: x[:-1]),
    Change("one more", (list, tuple), lambda x: [*x, *x[:1]]),
    Change("one after the other", (list, tuple), iter),
    Change("in themselves", (list, tuple), lambda x: [x]),
    Change("as a mapping", (list, tuple), lambda x: dict(enumerate(x))),
    Change("as texts", (list, tuple), lambda x: [str(one) for one in x]),
    Change("one None", (list, tuple), lambda x: [*x[:-1], None]),
    Change("its names", dict, list),
    Change("as pairs", dict, lambda x: list(x.items())),
    Change("ordered", dict, collections.OrderedDict),
    Change("with one more", dict, lambda x: {**x, "nothing": None}),
    Change("by number", dict, lambda x: dict(enumerate(x.values()))),
    Change("of None", dict, _mapped(lambda one: None)),
    Change("of its rows", dict, _mapped(lambda one: [one])),
    Change("on meta", nn.Module, lambda x: x.to("meta")),
    Change("in float64", nn.Module, nn.Module.double),
    Change("in float16", nn.Module, nn.Module.half),
    Change("its class", nn.Module, type, object),
]
