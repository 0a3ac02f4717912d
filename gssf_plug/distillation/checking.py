"""The proof behind `Distiller.check`: gradients of every term on the student, and a teacher that stands still."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gssf_plug.distillation.alignment import as_vector
from gssf_plug.distillation.plan import Check, CheckRow
from gssf_plug.distillation.taps import Feature
from gssf_plug.errors import ArgumentError

if TYPE_CHECKING:
    from gssf_plug.distillation.distiller import Distiller

__all__ = ["check_distiller"]


def check_distiller(distiller: "Distiller", batch: Any) -> Check:
    """See `Distiller.check`."""
    buffers = {name: value.clone() for name, value in distiller.named_buffers()}
    was_training = distiller.training
    devices = [distiller_device] if (distiller_device := _device(distiller)).type == "cuda" else []
    with torch.random.fork_rng(devices), torch.enable_grad():
        try:
            distiller.train()
            return _measure(distiller, batch)
        finally:
            distiller.train(was_training)
            for name, value in distiller.named_buffers():
                value.copy_(buffers[name])


def _measure(distiller: "Distiller", batch: Any) -> Check:
    parameters = [p for p in distiller.student.parameters() if p.requires_grad]
    first = distiller.teacher.features(batch, _device(distiller))
    ours, theirs, _ = distiller._read(batch, None)
    losses = distiller._compare(ours, theirs)
    for name, feature in first.items():
        if not torch.equal(feature.tensor, theirs[name].tensor):
            raise ArgumentError(
                "teacher",
                "give the same features twice",
                f"two answers for '{distiller.pairs[int(name)][1].path}'",
                "Dropout or another source of chance is active inside its forward; switch it off.",
            )
    rows = []
    for (pair, _), (name, loss) in zip(distiller._terms(), losses.items(), strict=True):
        gradients = _gradients(loss, parameters)
        norm = float(torch.stack([g.norm() for g in gradients]).norm()) if gradients else 0.0
        _check_gradient(name, norm)
        ratio = _length(theirs[str(pair)]) / max(_length(ours[str(pair)]), 1e-12)
        rows.append(CheckRow(name, float(loss.detach()), norm, ratio, len(gradients)))
    return Check(tuple(rows), len(parameters))


def _gradients(loss: Tensor, parameters: list[torch.nn.Parameter]) -> list[Tensor]:
    if not loss.requires_grad or not parameters:
        return []
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return [gradient for gradient in found if gradient is not None and bool(gradient.any())]


def _check_gradient(name: str, norm: float) -> None:
    if not 0 < norm < float("inf"):
        raise ArgumentError(
            "student",
            f"get a finite gradient from '{name}'",
            "none" if norm == 0 else norm,
            "Look for frozen parameters, a detach or no_grad before the tap, or two sides that agree already.",
        )


def _length(feature: Feature) -> float:
    return float(as_vector(feature).detach().norm(dim=-1).mean())


def _device(distiller: "Distiller") -> torch.device:
    return next(distiller.student.parameters()).device
