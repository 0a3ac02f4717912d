"""Where parameters are when they are not simply here: spread over processes, or offloaded to CPU or disk.

Spread (`fully_shard`, tensor parallelism): torch calls them DTensors, and each process holds its part. Offloaded
(`device_map="auto"`, accelerate's `cpu_offload` and `disk_offload`): the parameter is on the meta device, and a hook at
the module that holds it brings it in for the time of the module's forward.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from accelerate.hooks import AlignDevicesHook, ModelHook, SequentialHook
from accelerate.utils import align_module_device
from torch import Tensor, nn

__all__ = ["brought_in", "fill", "get_device", "is_offloaded", "is_sharded", "whole", "writes"]


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds only a part of the tensor (a DTensor)."""
    if not torch.distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor; where it is sharded this is a collective, and every process has to call it."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


@torch.no_grad()
def fill(tensor: Tensor, value: Tensor) -> None:
    """Copy the values of a whole tensor into `tensor`, in place; each process keeps its part."""
    if is_sharded(tensor):
        from torch.distributed.tensor import distribute_tensor

        mesh, placements = tensor.device_mesh, tensor.placements  # type: ignore[attr-defined]
        value = distribute_tensor(value.to(tensor.device, tensor.dtype), mesh, placements)
    tensor.copy_(value)


def writes() -> bool:
    """Whether this process writes the files that are the same on every process: the first one does."""
    return (
        not (torch.distributed.is_available() and torch.distributed.is_initialized())
        or torch.distributed.get_rank() == 0
    )


def is_offloaded(module: nn.Module) -> bool:
    """Whether a hook of accelerate brings in a parameter of `module`, or of a module below it, when it runs."""
    return any(hook.offload for part in module.modules() for hook in _align_hooks(part))


@contextmanager
def brought_in(module: nn.Module) -> Iterator[None]:
    """Bring offloaded parameters of `module` and below into memory, to be read inside the context."""
    with ExitStack() as stack:
        for part in module.modules():
            stack.enter_context(align_module_device(part))
        yield


def get_device(module: nn.Module) -> torch.device:
    """The device on which `module` computes."""
    parameter = next((p for p in module.parameters() if p.is_floating_point()), torch.zeros(()))
    if not parameter.is_meta:
        return parameter.device
    hooks = [hook for part in module.modules() for hook in _align_hooks(part) if hook.execution_device is not None]
    return torch.device(hooks[0].execution_device) if hooks else torch.device("cpu")


def _align_hooks(module: nn.Module) -> list[AlignDevicesHook]:
    hook: ModelHook | None = getattr(module, "_hf_hook", None)
    hooks = hook.hooks if isinstance(hook, SequentialHook) else (hook,)
    return [one for one in hooks if isinstance(one, AlignDevicesHook)]
