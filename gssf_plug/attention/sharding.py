"""Parameters that are spread over processes (`fully_shard`, tensor parallelism), which torch calls DTensors."""

import torch
from torch import Tensor

__all__ = ["fill", "is_sharded", "whole", "writes"]


def is_sharded(tensor: Tensor) -> bool:
    """Does this process hold only a part of it."""
    if not torch.distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def whole(tensor: Tensor) -> Tensor:
    """All of it; where it is sharded, every process has to ask at the same time."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


@torch.no_grad()
def fill(tensor: Tensor, value: Tensor) -> None:
    """Give `tensor` the values of a whole one, in place; each process keeps its part."""
    if is_sharded(tensor):
        from torch.distributed.tensor import distribute_tensor

        mesh, placements = tensor.device_mesh, tensor.placements  # type: ignore[attr-defined]
        value = distribute_tensor(value.to(tensor.device, tensor.dtype), mesh, placements)
    tensor.copy_(value)


def writes() -> bool:
    """Is this the process that writes files which all processes would write alike."""
    return (
        not (torch.distributed.is_available() and torch.distributed.is_initialized())
        or torch.distributed.get_rank() == 0
    )
