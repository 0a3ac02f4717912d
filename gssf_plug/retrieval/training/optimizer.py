"""Who trains at which rate: parameter groups of AdamW, and the rates as a pure function of the step.

The rates carry no state, so nothing of them has to be saved: a resumed run computes them from its step.

One optimizer step: forward, backward, clip, step, or a reason why the step was not taken.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import nn
from torch.optim import AdamW, Optimizer

from gssf_plug.errors import ArgumentError
from gssf_plug.retrieval.models.two_tower import ImageTextModel
from gssf_plug.retrieval.training.config import RetrievalConfig
from gssf_plug.retrieval.training.gradcache import cached_backward
from gssf_plug.retrieval.training.objective import Objective

__all__ = ["Outcome", "build_optimizer", "rate_factor", "set_rates", "take_step"]

ENCODERS = ("encoders", "image_encoder", "text_encoder")


def build_optimizer(objective: Objective, config: RetrievalConfig) -> AdamW:
    """AdamW over every trainable parameter of model and loss.

    The metric has its own rate and, like the loss, vectors and scalars (biases, normalisation layers), no decay: decay
    would pull a metric towards zero, where it kills channels, and not towards neutral.

    Raises:
        ArgumentError: nothing is left to train.
    """
    rates = _special_rates(objective, config)
    loss = _ids([objective.loss])
    groups: dict[tuple[str, float, float], list[nn.Parameter]] = {}
    for parameter in objective.parameters():
        if not parameter.requires_grad:
            continue
        name, rate = rates.get(id(parameter), ("rest", config.learning_rate))
        plain = name == "metric" or id(parameter) in loss or parameter.ndim <= 1
        groups.setdefault((name, rate, 0.0 if plain else config.weight_decay), []).append(parameter)
    if not groups:
        raise ArgumentError(
            "model", "have a parameter that requires a gradient", "none", "Unfreeze one, or give it a metric."
        )
    return AdamW(
        [
            {"params": parameters, "lr": rate, "peak": rate, "weight_decay": decay, "name": name}
            for (name, rate, decay), parameters in groups.items()
        ],
        fused=True,  # one pass over the weights: a fifth of the time, on CPUs too
    )


def _special_rates(objective: Objective, config: RetrievalConfig) -> dict[int, tuple[str, float]]:
    """Group and rate of parameters that do not have the ordinary one, by id; the last entry of a parameter holds."""
    model = objective.model
    # an encoder of images or texts may have a rate of its own, which overwrites this one below
    either = config.learning_rate if config.encoder_learning_rate is None else config.encoder_learning_rate
    wanted: list[tuple[str, float | None, Iterable[nn.Module]]] = [
        ("loss", config.loss_learning_rate, [objective.loss]),
        ("encoders", either, model.encoders()),
        ("metric", config.metric_learning_rate, model.metrics()),
    ]
    if isinstance(model, ImageTextModel):
        wanted.insert(2, ("image_encoder", config.image_encoder_learning_rate, model.image_encoders()))
        wanted.insert(3, ("text_encoder", config.text_encoder_learning_rate, model.text_encoders()))
    return {
        parameter: (name, rate) for name, rate, modules in wanted if rate is not None for parameter in _ids(modules)
    }


def _ids(modules: Iterable[nn.Module]) -> set[int]:
    return {id(parameter) for module in modules for parameter in module.parameters()}


def set_rates(optimizer: Optimizer, factor: float, *, frozen: bool = False) -> None:
    """Every group's rate becomes its peak times `factor`; that of encoders 0 where they are `frozen`."""
    for group in optimizer.param_groups:
        group["lr"] = 0.0 if frozen and group["name"] in ENCODERS else group["peak"] * factor


def rate_factor(step: int, steps: int, config: RetrievalConfig) -> float:
    """Factor on the learning rates in optimizer step `step`, 0 … steps-1.

    Args:
        step: number of steps done before this one.
        steps: number of steps of the whole run.
        config: its `warmup` is the share of the steps in which the factor rises linearly to 1; then by `schedule`:
            "cosine" or "linear" from 1 to 0 over the rest, "step" by `decay_factor` at each share of `decay_at`,
            "constant".
    """
    rising = math.ceil(config.warmup * steps)
    if step < rising:
        return (step + 1) / rising
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "step":
        # one factor for each share that is behind
        return config.decay_factor ** sum(step >= share * steps for share in config.decay_at)
    done = (step - rising) / max(steps - rising, 1)
    return 1 - done if config.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2


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

    With the recipe's `chunk_size` each batch is encoded in chunks, see `gssf_plug.retrieval.training.gradcache`.

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
