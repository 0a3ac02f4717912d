"""Which attention layers could learn: those that a gradient of the model's outputs reaches.

A model may run layers whose outputs it throws away: a backbone of twelve of which the head takes the fourth. A metric
there would change nothing, and a parameter without a gradient stops distributed training.
"""

from collections.abc import Callable, Mapping
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor, nn

from gssf_plug.attention.discovery.discover import ATTEMPTS
from gssf_plug.attention.discovery.example_inputs import arguments_of, arguments_with_image
from gssf_plug.attention.discovery.recording import Run, tensors_in, with_new
from gssf_plug.attention.discovery.snapshot import undisturbed

__all__ = ["without_gradient"]


def without_gradient(
    model: nn.Module, owners: Mapping[str, nn.Module], example_inputs: Mapping[str, Any] | None
) -> dict[str, str]:
    """The owners that the model runs and whose output its own outputs do not depend on, and what to say of them.

    Nothing is said of owners that one run of the whole model does not reach, nor where no gradient reaches any.

    Args:
        model: whose outputs count.
        owners: attention modules by path.
        example_inputs: keyword arguments of its forward; default made from the configuration.
    """
    with undisturbed(model), torch.inference_mode(False), torch.enable_grad():
        made = chain(arguments_with_image(model), arguments_of(model))
        tries = made if example_inputs is None else iter([_fresh(example_inputs)])
        for arguments in islice(tries, ATTEMPTS):
            try:
                heard = _heard(lambda arguments=arguments: model(**arguments), owners)  # type: ignore[misc]
            except Exception:  # inputs that do not fit this model, or a model that cannot be differentiated
                continue
            reason = "the model runs it, but no gradient of the model's outputs reaches it"
            return {name: reason for name, yes in heard.items() if not yes} if any(heard.values()) else {}
    return {}


def _fresh(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Copies, since tensors that were made in inference mode take no part in gradients."""
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in inputs.items()}


def _heard(run: Run, owners: Mapping[str, nn.Module]) -> dict[str, bool]:
    """Of each owner that the run reaches: does a gradient of what `run` gives reach its output?"""
    added: dict[str, list[Tensor]] = {}

    def add_zero(name: str) -> Callable[[nn.Module, object, object], object]:
        def hook(module: nn.Module, arguments: object, output: object) -> object:
            for found in list(tensors_in(output)):
                zero = torch.zeros_like(found, requires_grad=True)
                added.setdefault(name, []).append(zero)
                output = with_new(output, found, found + zero)
            return output

        return hook

    handles = [owner.register_forward_hook(add_zero(name)) for name, owner in owners.items()]
    try:
        outputs = [output.sum() for output in tensors_in(run()) if output.requires_grad]
    finally:
        for handle in handles:
            handle.remove()
    zeros = [zero for calls in added.values() for zero in calls]
    found = torch.autograd.grad(outputs, zeros, allow_unused=True) if outputs and zeros else [None] * len(zeros)
    reached = {id(zero) for zero, gradient in zip(zeros, found, strict=True) if gradient is not None}
    return {name: any(id(zero) in reached for zero in calls) for name, calls in added.items()}
