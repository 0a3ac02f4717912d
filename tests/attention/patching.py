"""What several attention tests do to a patched model."""

import torch
from torch import Tensor, nn

from gssf_plug.attention import AttentionPatch


def perturb(patch: AttentionPatch, scale: float = 0.3) -> None:
    """Move every parameter away from neutral, so that no test passes on the identity."""
    with torch.no_grad():
        for parameter in patch.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=scale)


def hidden(model: nn.Module, ids: Tensor, **options: object) -> Tensor:
    """The model's first output, without gradients."""
    with torch.no_grad():
        return model(ids, **options)[0]
