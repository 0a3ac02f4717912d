"""What is tried: structures of the metric that suit a width, and the losses they are trained with."""

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gssf_plug.errors import ArgumentError, near_matches
from gssf_plug.losses import Hinge, InfoNCE
from gssf_plug.losses.row_loss import mask_name
from gssf_plug.metric import GSSFMetric
from gssf_plug.metric.options import Constraint

__all__ = ["LOSSES", "Candidate", "Loss", "make_candidates"]

BLOCKS = (16, 64, 128)  # sides of blocks, or the divisors of the width nearest to them
LOSSES: dict[str, Callable[[], nn.Module]] = {
    "softmax": lambda: InfoNCE(scale=50.0, learned_scale=False),
    "hinge": Hinge,
}
Loss = nn.Module | str | None


@dataclass(frozen=True, eq=False)
class Candidate:
    """One row of the table.

    Args:
        name: name in the table.
        options: options of `GSSFMetric`, without `dim` and `normalize`.
        dim: width of the features.
        loss: word for the loss.
        make_loss: a new loss.
    """

    name: str
    options: Mapping[str, Any]
    dim: int
    loss: str
    make_loss: Callable[[], nn.Module]

    def metric(self, *, normalize: bool) -> GSSFMetric:
        """A neutral metric; rows that are normalised already need not be again."""
        return GSSFMetric(self.dim, normalize=normalize, **self.options)


def make_candidates(
    structures: str | Sequence[Mapping[str, Any]], loss: Loss, constraint: Constraint | None, dim: int
) -> list[Candidate]:
    """Every structure with every loss, the smallest first.

    Args:
        structures: "auto", or options of `GSSFMetric` for each.
        loss: None for both losses, a name, or a loss that each candidate gets a copy of.
        constraint: constraint of every structure that does not say otherwise.
        dim: width of the features.

    Raises:
        ArgumentError: another word than "auto", an empty list, an option that `GSSFMetric` does not take, a loss that
            is not one of scores.
    """
    if structures != "auto" if isinstance(structures, str) else not isinstance(structures, Sequence):
        rule = "be 'auto' or a list of options of GSSFMetric"
        raise ArgumentError(
            "structures", rule, repr(structures), "Such as [{'block_size': 16}, {'terms': ('dense',)}]."
        )
    listed = _suitable(dim) if isinstance(structures, str) else _named(structures)
    if not listed:
        raise ArgumentError("structures", "hold at least one structure", "none", "Use 'auto'.")
    losses = _losses(loss)
    made = []
    for structure, options in listed:
        for word, make in losses.items():
            name = f"{structure}, {word}" if len(losses) > 1 else structure
            made.append(Candidate(name, {"constraint": constraint, **options}, dim, word, make))
    for candidate in made:
        _check(candidate)
    return made


def _suitable(dim: int) -> list[tuple[str, dict[str, Any]]]:
    """Diagonal, blocks of about 16, 64 and 128, dense; a width without such a divisor gets a smaller last block."""
    listed: list[tuple[str, dict[str, Any]]] = [("diagonal", {"terms": ("diagonal",)})]
    for wanted in BLOCKS:
        if wanted * 3 // 2 >= dim:
            break
        divisors = [size for size in range(wanted // 2, wanted * 2) if dim % size == 0]
        if divisors:
            size = min(divisors, key=lambda each: abs(each - wanted))
            options: dict[str, Any] = {"terms": ("block_diagonal",), "block_size": size}
            if size < dim and (f"blocks of {size}", options) not in listed:
                listed.append((f"blocks of {size}", options))
        else:
            listed.append((f"blocks of {wanted} and {dim % wanted}", {"adjacency": _cut_blocks(dim, wanted)}))
    return [*listed, ("dense", {"terms": ("dense",)})]


def _cut_blocks(dim: int, size: int) -> torch.Tensor:
    block = torch.arange(dim) // size
    return block[:, None] == block


def _named(structures: Sequence[Mapping[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    named = []
    for options in structures:
        if not isinstance(options, Mapping):
            got = f"{type(options).__name__} {options!r}"
            raise ArgumentError("structures", "hold options of GSSFMetric as dicts", got, "Such as {'block_size': 16}.")
        words = {key: value for key, value in options.items() if key not in ("adjacency", "grouping")}
        shown = [f"{key}={'+'.join(value) if key == 'terms' else value}" for key, value in words.items()]
        shown += [key for key in ("adjacency", "grouping") if options.get(key) is not None]
        named.append((", ".join(shown) or "diagonal + blocks of 16", dict(options)))
    return named


def _losses(loss: Loss) -> dict[str, Callable[[], nn.Module]]:
    if loss is None:
        return LOSSES
    if isinstance(loss, nn.Module):
        _check_called(loss)
        return {type(loss).__name__: lambda: copy.deepcopy(loss)}
    if isinstance(loss, str) and loss in LOSSES:
        return {loss: LOSSES[loss]}
    rule = f"be None, a loss module, or one of {tuple(LOSSES)}"
    raise ArgumentError("loss", rule, repr(loss), near_matches(str(loss), LOSSES))


def _check_called(loss: nn.Module) -> None:
    try:
        inspect.signature(loss.forward).bind(..., ..., **{mask_name(loss): None})
    except TypeError as error:
        rule, remedy = "be called as loss(scores, relevance, exclude=mask)", "Such as InfoNCE or Sigmoid, or your own."
        raise ArgumentError("loss", rule, f"{type(loss).__name__} ({error})", remedy) from error


def _check(candidate: Candidate) -> None:
    try:
        candidate.metric(normalize=True)
    except TypeError as error:
        rule = f"hold options of GSSFMetric ({error})"
        raise ArgumentError("structures", rule, dict(candidate.options), "See GSSFMetric.") from error
