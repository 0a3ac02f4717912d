"""Parameters that are spread over processes (`fully_shard`, tensor parallelism), which torch calls DTensors."""

import torch
from torch import Tensor

__all__ = ["is_sharded", "whole"]


def is_sharded(tensor: Tensor) -> bool:
    """Does this process hold only a part of it."""
    if not torch.distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def whole(tensor: Tensor) -> Tensor:
    """All of it; where it is sharded, every process has to ask at the same time."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
