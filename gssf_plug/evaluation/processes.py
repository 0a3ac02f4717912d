"""Sharing the work of one evaluation among processes: everything counted is a sum, so shares only need adding.

With `distributed=True` every process calls the function with the same arguments, counts its share and receives the
same result. Nothing happens behind a caller's back: the default is one process, whatever else runs.
"""

from collections.abc import Sequence
from typing import TypeVar

import torch.distributed
from torch import Tensor

from gssf_plug.errors import ArgumentError

__all__ = ["add_over_processes", "share"]

Piece = TypeVar("Piece")


def share(pieces: Sequence[Piece], distributed: bool) -> Sequence[Piece]:
    """This process's part of `pieces`: every W-th, or all where `distributed` is False.

    Raises:
        ArgumentError: `distributed=True` without an initialised process group.
    """
    if not distributed:
        return pieces
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        raise ArgumentError(
            "distributed",
            "be False without an initialised torch.distributed process group",
            "True",
            "Launch with `accelerate launch` or torchrun, or leave the default.",
        )
    return pieces[torch.distributed.get_rank() :: torch.distributed.get_world_size()]


def add_over_processes(counts: Tensor, distributed: bool) -> Tensor:
    """Sum of `counts` over all processes, in place; unchanged where `distributed` is False."""
    if distributed:
        torch.distributed.all_reduce(counts)
    return counts
