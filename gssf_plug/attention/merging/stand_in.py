"""Folded weights that stand in for the real ones for a while, as `AttentionPatch.folded` has them.

They are shown, not written: an attribute of the module, which Python finds before the parameter of that name. So the
parameter stays what it is, in `state_dict`, for optimizers and in checkpoints, and comes back to the bit by taking the
attribute away, also after an error.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gssf_plug.attention.discovery.query_access import shadow, unshadow
from gssf_plug.attention.merging.fold import Fold

__all__ = ["StandIn"]


class StandIn:
    """The folded weights of one layer, and what they were made of.

    Args:
        fold: the folded values of the weights.
        holders: the module and the name of each parameter that they stand in for.
        metric: the metric that was folded.
    """

    def __init__(self, fold: Fold, holders: Mapping[nn.Parameter, tuple[nn.Module, str]], metric: nn.Module) -> None:
        self.shown: dict[tuple[nn.Module, str], Tensor] = {}
        self.made_of: list[tuple[Tensor, Tensor]] = []  # each tensor beside its values at the start
        learns = any(parameter.requires_grad for parameter in (*fold.new, *metric.parameters()))
        for parameter, value in fold.new.items():
            stand_in = value.detach().to(parameter.dtype).clone()
            self.made_of.append((stand_in.detach(), stand_in.clone()))  # detached, it shares the memory
            # a leaf with a hook that refuses: training inside would otherwise go through, and change nothing
            self.shown[holders[parameter]] = _deaf(stand_in) if learns else stand_in
        for parameter in (*fold.new, *metric.parameters()):
            self.made_of.append((parameter.detach(), parameter.detach().clone()))

    def show(self) -> None:
        """Let the modules compute with the folded weights."""
        for (holder, name), value in self.shown.items():
            shadow(holder, name, value)

    def hide(self) -> None:
        """Let the modules compute with their own weights."""
        for holder, name in self.shown:
            unshadow(holder, name)

    def stale(self) -> bool:
        """Have the weights, the metric or the folded weights been changed since."""
        return any(not torch.equal(now.nan_to_num(), then.nan_to_num()) for now, then in self.made_of)


def _deaf(weight: Tensor) -> Tensor:
    """A leaf that no gradient may reach: behind it, neither the base nor the metric would learn."""
    weight.requires_grad_().register_hook(_refuse_gradient)
    return weight


def _refuse_gradient(gradient: Tensor) -> None:
    raise RuntimeError(
        "patch.folded() is for inference: inside it no gradient reaches the metric. Train outside of it."
    )
