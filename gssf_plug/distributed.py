r"""One batch over many processes: gather rows, uneven counts allowed, gradients back to where the rows came from.

    gather(x)            rows of all processes, in the order of rank; differentiable
    gather_detached(x)   the same without gradients, for ids, labels, cameras
    share(pieces)        this process's part of work that is divided; add_over_processes(x) adds the results
    hold_group()         a launched script comes to its end: the group is left in order before Python is taken down

Without a process group (or with one process) both return their argument. Everything else is Accelerate's.

Scaling of the gradient, precisely. Every process p forms the same loss L of the gathered rows. The backward of
`gather` is the adjoint for the sum over processes: ∂(Σ_q L_q)/∂x_p, that is P · ∂L/∂x_p for P processes that agree. DDP
then *averages* parameter gradients over processes, and

    1/P Σ_p (P · ∂L/∂x_p) ∂x_p/∂θ = ∂L/∂θ,

the gradient of one process that holds the whole batch. Parameters used after the gather (the metric, a learned scale)
get ∂L/∂θ on every process, and the mean of equals is the same. So under DDP no factor is needed anywhere; a loop that
sums gradients instead of averaging them divides its loss by P.

Nothing is shared behind a caller's back: functions that divide their work do so with `distributed=True` alone, where
every process calls with the same arguments.

Nothing else is refused: tensors that differ between processes in more than their first dimension are a broken
invariant, and torch.distributed aborts on them.
"""

import atexit
import gc
import sys
import threading
import traceback
from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from gssf_plug.errors import ArgumentError

__all__ = ["add_over_processes", "gather", "gather_detached", "hold_group", "process_count", "share"]

Piece = TypeVar("Piece")


def process_count() -> int:
    """Number of processes in the default group; 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def hold_group() -> None:
    """Keep the default process group until Python ends, and leave it in order then.

    Call it before a module goes into `DistributedDataParallel`; `RetrievalTrainer` and `DistillationTrainer` do. It
    concerns gloo, the backend of CPUs, alone; with another backend, or with one process, it does nothing.

    A thread of gloo that has finished a collective lets go of its tensors a little later, on a busy machine much later,
    and needs Python's lock for those that Python knows. Where Python is being taken down by then, the process aborts
    ("terminate called without an active exception", exit code -6) although its work is done; where the last to hold
    the group is DDP, which waits for those threads with the lock in hand, it never ends (torch 2.13, CPython before
    3.14). So the group is held here, and at exit, while Python is alive, it is taken from every DDP module and freed
    with the lock released, which waits for its threads. A thread that waits for a process that is gone holds nobody up
    for longer than `PATIENCE` seconds.
    """
    if process_count() == 1 or dist.get_backend() != "gloo" or (world := dist.group.WORLD) is None:
        return
    if not _held:
        leaving = threading.Thread(target=_let_go, daemon=True)
        leaving.start()  # waits, as none can be started at exit since Python 3.12
        atexit.register(_leave_groups, leaving)  # what is registered last runs first: before torch's and Accelerate's
    if world not in _held:
        _held.append(world)


PATIENCE = 10.0
_held: list[dist.ProcessGroup] = []
_at_exit = threading.Event()


def _let_go() -> None:
    _at_exit.wait()
    _held.clear()


def _leave_groups(leaving: threading.Thread) -> None:
    """The last reference to every group is dropped here, by a thread of Python, which waits without its lock."""
    if dist.is_initialized():
        dist.destroy_process_group()
    ended_by = getattr(sys, "last_value", None)
    while ended_by is not None:  # frames of an uncaught error hold what they held, such as the group of a collective
        traceback.clear_frames(ended_by.__traceback__)
        ended_by = ended_by.__cause__ or ended_by.__context__
    for owner in gc.get_objects():
        if issubclass(type(owner), DistributedDataParallel):  # `isinstance` would ask proxies, which may do anything
            for name in ("logger", "reducer", "process_group"):
                vars(owner).pop(name, None)
    _at_exit.set()
    leaving.join(PATIENCE)


def gather(rows: Float[Tensor, " n *rest"]) -> Float[Tensor, " total *rest"]:
    """Rows of all processes in the order of rank, differentiable; see the module's text for the scale.

    Args:
        rows: this process's rows, (n_p, ...) of a floating-point type. n_p may differ between processes and be 0. Every
            process must call this at the same time: it is a collective.

    Returns:
        The rows of all processes, (Σ_p n_p, ...), on every process; `rows` itself where there is one process.
    """
    if process_count() == 1:
        return rows
    gathered: Tensor = _Gather.apply(rows)
    return gathered


def gather_detached(rows: Shaped[Tensor, " n *rest"]) -> Shaped[Tensor, " total *rest"]:
    """As `gather`, for any dtype and without gradients; rows come in the same order."""
    rows = rows.detach()
    return rows if process_count() == 1 else torch.cat(_gather_parts(rows))


def share(pieces: Sequence[Piece], distributed: bool) -> Sequence[Piece]:
    """This process's contiguous part of `pieces`, or all where `distributed` is False.

    Raises:
        ArgumentError: `distributed` is no truth value, or it is True and no process group is initialised.
    """
    if not isinstance(distributed, bool):
        raise ArgumentError("distributed", "be True or False", repr(distributed), "Leave the default.")
    if not distributed:
        return pieces
    if not (dist.is_available() and dist.is_initialized()):
        raise ArgumentError(
            "distributed",
            "be False without an initialised torch.distributed process group",
            "True",
            "Launch with `accelerate launch` or torchrun, or leave the default.",
        )
    rank, processes = dist.get_rank(), dist.get_world_size()
    # cuts at the rounded multiples: shares differ by one piece at most
    return pieces[len(pieces) * rank // processes : len(pieces) * (rank + 1) // processes]


def add_over_processes(counts: Tensor, distributed: bool) -> Tensor:
    """Sum of `counts` over all processes, in place; unchanged where `distributed` is False."""
    if distributed:
        dist.all_reduce(counts)
    return counts


class _Gather(torch.autograd.Function):
    """Forward: all_gather. Backward: sum the gradients of all processes, keep those of the own rows."""

    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:  # type: ignore[no-untyped-def]  # noqa: ANN001
        parts = _gather_parts(rows)
        ctx.before = sum(len(part) for part in parts[: dist.get_rank()])
        ctx.own = len(rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:  # type: ignore[no-untyped-def]  # noqa: ANN001
        # every process has a gradient for all rows: those of the own rows are the sum over processes
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, op=dist.ReduceOp.SUM)
        return total[ctx.before : ctx.before + ctx.own]


def _gather_parts(rows: Tensor) -> list[Tensor]:
    """The rows of every process. Padded to the longest on the way: uneven shapes abort gloo and hang NCCL."""
    counts = _gather_counts(rows)
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    received = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(received, padded)
    return [part[:count] for part, count in zip(received, counts, strict=True)]


def _gather_counts(rows: Tensor) -> list[int]:
    own = torch.tensor([len(rows)], device=rows.device)
    received = [torch.empty_like(own) for _ in range(process_count())]
    dist.all_gather(received, own)
    return [int(count) for count in torch.cat(received)]
