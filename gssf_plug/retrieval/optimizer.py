"""Who trains at which rate: parameter groups of AdamW, and the rates as a pure function of the step.

The rates carry no state, so nothing of them has to be saved: a resumed run computes them from its step.
"""

import math
from collections.abc import Iterable
from typing import Literal

from torch import nn
from torch.optim import AdamW, Optimizer

from gssf_plug.errors import ArgumentError
from gssf_plug.retrieval.config import RetrievalConfig
from gssf_plug.retrieval.objective import Objective

__all__ = ["build_optimizer", "rate_factor", "set_rates"]

Schedule = Literal["cosine", "linear", "step", "constant"]
STEP_AT = 0.6  # VSE∞: a tenth after 15 of 25 epochs


def build_optimizer(objective: Objective, config: RetrievalConfig) -> AdamW:
    """AdamW over every trainable parameter of model and loss.

    The metric has its own rate and, like the loss, vectors and scalars (biases, normalisation layers), no decay: decay
    would pull a metric towards zero, where it kills channels, and not towards neutral.

    Raises:
        ArgumentError: nothing to train.
    """
    model = objective.model
    metric = _ids([model.metric] if model.metric is not None else [])
    encoders, loss = _ids(model.encoders()), _ids([objective.loss])
    encoder_rate = config.learning_rate if config.encoder_learning_rate is None else config.encoder_learning_rate
    groups: dict[tuple[str, float, float], list[nn.Parameter]] = {}
    for parameter in objective.parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) in metric:
            name, rate = "metric", config.metric_learning_rate
        elif id(parameter) in encoders:
            name, rate = "encoders", encoder_rate
        else:
            name, rate = "rest", config.learning_rate
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
        ]
    )


def _ids(modules: Iterable[nn.Module]) -> set[int]:
    return {id(parameter) for module in modules for parameter in module.parameters()}


def set_rates(optimizer: Optimizer, factor: float) -> None:
    """Every group's rate becomes its peak times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


def rate_factor(step: int, steps: int, *, warmup: float, schedule: Schedule) -> float:
    """Factor on the learning rates in optimizer step `step`, 0 … steps-1.

    Args:
        step: number of steps done before this one.
        steps: steps of the whole run.
        warmup: share of the steps in which the factor rises linearly to 1.
        schedule: "cosine" or "linear" from 1 to 0 over the rest, "step" to 0.1 after 60 % of all, "constant".
    """
    rising = math.ceil(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    if schedule == "constant":
        return 1.0
    if schedule == "step":
        return 0.1 if step >= STEP_AT * steps else 1.0
    done = (step - rising) / max(steps - rising, 1)
    return 1 - done if schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
