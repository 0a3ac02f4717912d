"""One optimizer step: forward, backward, clip, step, or a reason why the step was not taken."""

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import nn
from torch.optim import Optimizer

__all__ = ["Outcome", "take_step"]


class Outcome(NamedTuple):
    """`losses`, one per batch; `failure`, empty where the step was taken."""

    losses: list[float]
    failure: str


def take_step(
    objective: nn.Module,
    optimizer: Optimizer,
    accelerator: Accelerator,
    batches: Sequence[Mapping[str, Any]],
    *,
    max_gradient_norm: float | None = None,
) -> Outcome:
    """Descend on the mean loss of `batches`; weights stay as they are where a loss or the gradient is not finite.

    The loss is that of the whole batch of all processes, so every process comes to the same outcome.
    """
    optimizer.zero_grad()
    losses: list[float] = []
    for number, batch in enumerate(batches, start=1):
        synchronised = number == len(batches)
        with nullcontext() if synchronised else accelerator.no_sync(objective):
            loss = objective(send_to_device(batch, accelerator.device))
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                return Outcome(losses, f"the loss is {losses[-1]}")
            accelerator.backward(loss / len(batches))
    limit = math.inf if max_gradient_norm is None else max_gradient_norm
    norm = float(accelerator.clip_grad_norm_(objective.parameters(), limit))
    if not math.isfinite(norm) and accelerator.scaler is None:  # the scaler of fp16 skips such steps by itself
        return Outcome(losses, f"the norm of the gradient is {norm}")
    optimizer.step()
    return Outcome(losses, "")
