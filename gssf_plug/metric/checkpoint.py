"""A metric from a configuration and tensors that anybody may have written: types, ranges, shapes, then values.

The metric is built on the meta device and takes the file's own tensors, so a configuration that claims a billion
channels costs nothing before it is found out.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from gssf_plug.errors import ArgumentError, CheckpointError
from gssf_plug.files import load_strictly
from gssf_plug.metric.structures import BlockDiagonal

__all__ = ["DIM_LIMIT", "read_metric"]

DIM_LIMIT = 2**24  # channels
ADJACENCY = "structures.adjacency.adjacency"
REMEDY = "It is damaged, or edited by hand; save it again."
TYPES: dict[str, tuple[type, ...]] = {
    "dim": (int,),
    "terms": (list,),
    "block_size": (int,),
    "normalize": (bool,),
    "constraint": (str, type(None)),
    "grouped": (bool,),
}

Metric = TypeVar("Metric", bound=nn.Module)


def read_metric(
    build: Callable[..., Metric], config: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: Path
) -> Metric:
    """The metric that `build`, the constructor, makes of a configuration, with these tensors for its own.

    Raises:
        CheckpointError: a key is unknown or missing, a value has another type or range, the tensors do not belong to
            it, or one holds NaN.
    """
    grouping = tensors.get("grouping")
    config = {"grouped": grouping is not None, **config}  # folders of before this key say it by the tensor alone
    _check_config(config, folder)
    if config["grouped"] != (grouping is not None):
        problem = (
            f"{'lacks' if grouping is None else 'has'} the tensor 'grouping', and its configuration says otherwise"
        )
        raise CheckpointError(folder, problem, REMEDY)
    adjacency = tensors.get(ADJACENCY)
    if (adjacency is None) == (not config["terms"]):
        problem = "has neither terms nor an adjacency" if adjacency is None else "has both terms and an adjacency"
        raise CheckpointError(folder, problem, REMEDY)
    options = {key: config[key] for key in ("dim", "block_size", "normalize", "constraint")}
    if adjacency is None:
        options["terms"] = config["terms"]
    try:
        with torch.device("meta"):
            metric = build(**options, grouping=grouping, adjacency=adjacency)
    except (ArgumentError, TypeError, RuntimeError) as error:
        problem = f"has a configuration that does not hold together ({error})"
        raise CheckpointError(folder, problem, "Save it again.") from error
    _adopt_kept(metric, tensors, folder)
    load_strictly(metric, tensors, folder)
    return metric


def _check_config(config: Mapping[str, Any], folder: Path) -> None:
    odd = sorted(config.keys() ^ TYPES.keys())
    if odd:
        problem = f"has a configuration with the key '{odd[0]}' {'unknown' if odd[0] in config else 'missing'}"
        raise CheckpointError(folder, problem, REMEDY)
    for key, types in TYPES.items():
        if type(config[key]) not in types:
            names = " or ".join(kind.__name__ for kind in types)
            problem = f"has a configuration whose '{key}' is no {names} but a {type(config[key]).__name__}"
            raise CheckpointError(folder, problem, REMEDY)
    if not all(isinstance(term, str) for term in config["terms"]):
        raise CheckpointError(folder, "has a configuration whose 'terms' are no texts", REMEDY)
    for key in ("dim", "block_size"):
        if not 1 <= config[key] <= DIM_LIMIT:
            problem = f"has a configuration whose '{key}' is not between 1 and {DIM_LIMIT:,}"
            raise CheckpointError(folder, problem, REMEDY)


def _adopt_kept(metric: nn.Module, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Which blocks were pruned decides the shape of the others' weights."""
    for name, part in metric.named_modules():
        kept = tensors.get(f"{name}.kept")
        if kept is None or not isinstance(part, BlockDiagonal):
            continue
        try:
            part.adopt_kept(kept)
        except ArgumentError as error:
            raise CheckpointError(folder, f"holds an impossible pruning ({error})", "Save it again.") from error
