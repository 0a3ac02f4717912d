"""One optimizer step: forward, backward, clip, step, or a reason why the step was not taken."""

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import nn
from torch.optim import Optimizer

from gssf_plug.retrieval.config import RetrievalConfig
from gssf_plug.retrieval.gradcache import cached_backward

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
    config: RetrievalConfig,
) -> Outcome:
    """Descend on the mean loss of `batches`; weights stay as they are where a loss or the gradient is not finite.

    With the recipe's `chunk_size` each batch is encoded in chunks, see `gssf_plug.retrieval.gradcache`.

    The loss is that of the whole batch of all processes, so every process comes to the same outcome.
    """
    optimizer.zero_grad()
    losses: list[float] = []
    for number, batch in enumerate(batches, start=1):
        batch, last = send_to_device(batch, accelerator.device), number == len(batches)
        weight = 1 / len(batches)
        if config.chunk_size is None:
            losses.append(_backward(objective, accelerator, batch, weight, synchronise=last))
        else:
            cached = partial(cached_backward, objective, accelerator, batch, config.chunk_size)
            losses.append(cached(weight=weight, synchronise=last))
        if not math.isfinite(losses[-1]):
            return Outcome(losses, f"the loss is {losses[-1]}")
    limit = math.inf if config.max_gradient_norm is None else config.max_gradient_norm
    norm = float(accelerator.clip_grad_norm_(objective.parameters(), limit))
    if not math.isfinite(norm) and accelerator.scaler is None:  # the scaler of fp16 skips such steps by itself
        return Outcome(losses, f"the norm of the gradient is {norm}")
    optimizer.step()
    return Outcome(losses, "")


def _backward(
    objective: nn.Module, accelerator: Accelerator, batch: Mapping[str, Any], weight: float, *, synchronise: bool
) -> float:
    # FSDP2 would keep gradients of whole parameters until the next synchronised backward, also past zero_grad()
    with nullcontext() if synchronise or accelerator.is_fsdp2 else accelerator.no_sync(objective):
        loss = objective(batch)
        value: float = loss.item()
        if math.isfinite(value):
            accelerator.backward(loss * weight)
    return value
