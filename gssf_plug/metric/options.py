"""The options of a metric, checked once when it is built: every rule, what came, and what to do instead."""

from collections.abc import Sequence, Set
from typing import Literal, get_args

import torch
from jaxtyping import Int
from torch import Tensor, nn

from gssf_plug.arguments import WHOLE, checked_count, described, holds_whole_numbers, is_dense
from gssf_plug.errors import ArgumentError, near_matches
from gssf_plug.metric.arrays import to_tensor

__all__ = [
    "Constraint",
    "Term",
    "canonical_terms",
    "check_adjacency",
    "check_constraint",
    "check_metric",
    "checked_block_size",
    "checked_chunk",
    "checked_grouping",
    "require_metric",
]

Term = Literal["diagonal", "block_diagonal", "dense"]
Constraint = Literal["symmetric", "psd"]


def canonical_terms(terms: Sequence[str]) -> tuple[Term, ...]:
    """The terms in the order in which they are built; the first one starts at the identity."""
    known = get_args(Term)
    if isinstance(terms, str):  # one term, by its name alone
        terms = (terms,)
    if not isinstance(terms, Sequence | Set) or not terms or len(set(map(str, terms))) != len(terms):
        raise ArgumentError("terms", "be a tuple of different term names", repr(terms), f"Choose from {known}.")
    for term in terms:
        if term not in known:
            raise ArgumentError("terms", f"hold only {known}", repr(term), near_matches(str(term), known))
    return tuple(term for term in known if term in terms)


def checked_chunk(name: str, value: object, of: int) -> int:
    """How many of so many items are worked on at once, at least 1 and at most all."""
    return min(checked_count(name, value, "Use the default, or less where memory is short."), max(of, 1))


def check_metric(metric: object, *, values: bool = False, name: str = "metric") -> None:
    """None, or a metric; with `values` one that can score by now, on a device that holds its weights.

    Raises:
        ArgumentError: the value is neither None nor a metric, or its weights are on the meta device.
    """
    if metric is None:
        return
    if not (hasattr(metric, "fold") and hasattr(metric, "gallery") and hasattr(metric, "dim")):
        raise ArgumentError(name, "be a GSSFMetric or None", described(metric), "None means cosine.")
    if values and isinstance(metric, nn.Module) and any(one.is_meta for one in metric.parameters()):
        raise ArgumentError(name, "hold values", "weights on the meta device", "Load it, or train it first.")


def require_metric(metric: object, remedy: str, *, values: bool = False) -> None:
    """A metric, where None has no meaning.

    Raises:
        ArgumentError: the value is no metric.
    """
    if metric is None:
        raise ArgumentError("metric", "be a GSSFMetric", "None", remedy)
    check_metric(metric, values=values)


def checked_block_size(block_size: int, dim: int, *, divides: bool = True) -> int:
    """A divisor of `dim`, or any count where nothing is cut into blocks."""
    block_size = checked_count("block_size", block_size, f"Use a divisor of dim={dim}.", rule=WHOLE)
    if divides and dim % block_size:
        divisors = [size for size in range(1, min(dim, 1024) + 1) if dim % size == 0]
        raise ArgumentError("block_size", f"divide dim={dim}", block_size, f"Use one of {divisors}.")
    return block_size


def check_constraint(constraint: str | None) -> None:
    """None, or one of the known names."""
    if constraint is not None and not (isinstance(constraint, str) and constraint in get_args(Constraint)):
        raise ArgumentError(
            "constraint",
            f"be None or one of {get_args(Constraint)}",
            repr(constraint),
            near_matches(str(constraint), get_args(Constraint)),
        )


def check_adjacency(adjacency: Tensor, dim: int, constraint: str | None) -> None:
    """A boolean D×D matrix with a full diagonal that suits the constraint."""
    if not is_dense(adjacency):
        raise ArgumentError("adjacency", f"be a boolean tensor of {dim}×{dim}", described(adjacency), "Convert it.")
    if adjacency.dtype != torch.bool or adjacency.shape != (dim, dim):
        got = f"{adjacency.dtype} of shape {tuple(adjacency.shape)}"
        raise ArgumentError("adjacency", f"be a boolean matrix of {dim}×{dim}", got, "Convert it with .bool().")
    if not bool(adjacency.diagonal().all()):
        missing = int((~adjacency.diagonal()).nonzero()[0])
        raise ArgumentError(
            "adjacency",
            "contain the diagonal, or the metric cannot start neutral",
            f"False at ({missing}, {missing})",
            "Set it with adjacency.fill_diagonal_(True).",
        )
    if constraint == "psd":
        raise ArgumentError(
            "adjacency",
            "not be used with constraint='psd', since LᵀL leaves U",
            "both",
            "Drop one of the two.",
        )
    if constraint == "symmetric" and not torch.equal(adjacency, adjacency.T):
        raise ArgumentError(
            "adjacency",
            "be symmetric for constraint='symmetric'",
            "an asymmetric one",
            "Use adjacency | adjacency.T.",
        )


def checked_grouping(grouping: Int[Tensor, " dim"], dim: int) -> Int[Tensor, " dim"]:
    """A copy of a permutation of 0 … D-1, in int64."""
    listed = to_tensor("grouping", grouping)
    if not holds_whole_numbers(listed):
        rule, remedy = f"hold whole numbers, a permutation of 0 … {dim - 1}", "Convert it with .long() if they are."
        raise ArgumentError("grouping", rule, described(listed), remedy)
    permutation = listed.long().clone()
    if permutation.shape != (dim,) or not torch.equal(
        permutation.sort().values, torch.arange(dim, device=permutation.device)
    ):
        raise ArgumentError(
            "grouping",
            f"be a permutation of 0 … {dim - 1}",
            f"shape {tuple(permutation.shape)}",
            "Take it from gssf_plug.metric.group_channels, or torch.randperm(dim).",
        )
    return permutation
