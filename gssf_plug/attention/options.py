"""The options of an adapter, checked before anything is touched, and the metric that they describe."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import nn

from gssf_plug.arguments import check_positive, listed
from gssf_plug.attention.discovery.layouts import Heads
from gssf_plug.errors import ArgumentError
from gssf_plug.metric import GSSFMetric, Term

__all__ = ["AdapterOptions", "check_adapter_name", "check_dtype", "check_example", "check_places"]


@dataclass(frozen=True)
class AdapterOptions:
    """What one adapter's metrics are made of; see `patch_attention`.

    Raises:
        ArgumentError: an option breaks its rule, whatever the model is.
    """

    terms: tuple[Term, ...]
    block_size: int
    per_head: bool

    def __post_init__(self) -> None:
        check_positive("block_size", self.block_size, "Use a divisor of the head dimension, such as 8.")
        GSSFMetric(self.block_size, terms=self.terms, block_size=self.block_size)  # its errors name the terms
        if "dense" in self.terms and "block_diagonal" in self.terms:
            raise ArgumentError(
                "terms", "not hold both 'dense' and 'block_diagonal'", self.terms, "Dense is every block."
            )
        if not isinstance(self.per_head, bool):
            remedy = "True is a metric for each head, False one shared by the heads of a layer."
            raise ArgumentError("per_head", "be True or False", repr(self.per_head), remedy)

    @classmethod
    def of(cls, terms: Iterable[Term], block_size: int, per_head: bool) -> "AdapterOptions":
        """Read what the caller passed, where the terms may come in any collection."""
        given = listed(terms)
        if not given or not all(isinstance(term, str) for term in given):
            remedy = f"Choose from {get_args(Term)}."
            raise ArgumentError("terms", "be a tuple of different term names", repr(terms), remedy)
        return cls(given, block_size, per_head)

    def metric(self, heads: Heads) -> GSSFMetric:
        """A neutral metric for one layer. Blocks divide a head, so one metric over all heads is one for each head."""
        width = heads.query_heads * heads.head_dim if self.per_head else heads.head_dim
        terms: tuple[Term, ...] = tuple("block_diagonal" if term == "dense" else term for term in self.terms)
        block_size = heads.head_dim if "dense" in self.terms else self.block_size
        return GSSFMetric(width, terms=terms, block_size=block_size, normalize=False)

    def check_fits(self, sizes: Mapping[str, int]) -> None:
        """Raise unless blocks divide the head dimension of every layer, which `sizes` gives by path."""
        wrong = next((name for name, size in sizes.items() if size % self.block_size), None)
        if wrong is not None and "block_diagonal" in self.terms:
            common = math.gcd(*sizes.values())
            fitting = [divisor for divisor in range(1, common + 1) if common % divisor == 0]
            rule = f"divide the head dimension {sizes[wrong]} of '{wrong}'"
            raise ArgumentError("block_size", rule, self.block_size, f"Use one of {fitting}.")


def check_places(sites: str, query_norm: str) -> None:
    """Raise unless the two options that say where the metric goes have values that fit together."""
    if not isinstance(sites, str) or sites not in ("projection", "score"):
        raise ArgumentError("sites", "be 'projection' or 'score'", repr(sites), "See patch_attention.")
    if sites == "score" and isinstance(query_norm, str) and query_norm == "before":
        remedy = "The score comes after the norm: leave query_norm out, or use sites='projection'."
        raise ArgumentError("query_norm", "be 'after' where sites='score'", repr(query_norm), remedy)
    if not isinstance(query_norm, str) or query_norm not in ("after", "before"):
        raise ArgumentError("query_norm", "be 'after' or 'before'", repr(query_norm), "See patch_attention.")


def check_example(example_inputs: Mapping[str, Any] | None) -> None:
    """Raise unless these are None, or arguments of the model's forward by name."""
    named = isinstance(example_inputs, Mapping) and all(isinstance(name, str) for name in example_inputs)
    if example_inputs is not None and not named:
        remedy = "Such as dict(input_ids=...), or leave it out."
        raise ArgumentError("example_inputs", "hold arguments by name", type(example_inputs).__name__, remedy)


def check_dtype(dtype: torch.dtype | None) -> None:
    """Raise unless it is None, or a data type that parameters can have."""
    if dtype is not None and (not isinstance(dtype, torch.dtype) or not dtype.is_floating_point):
        remedy = "Use torch.float32, or leave it out."
        raise ArgumentError("dtype", "be a floating-point dtype of torch", repr(dtype), remedy)


def check_adapter_name(adapter_name: str) -> None:
    """Raise unless the name can stand in a path of parameters."""
    plain = isinstance(adapter_name, str) and adapter_name and "." not in adapter_name
    if not plain or hasattr(nn.ModuleDict, adapter_name):
        raise ArgumentError(
            "adapter_name", "be a plain name without dots", repr(adapter_name), "Use letters, digits and _."
        )
