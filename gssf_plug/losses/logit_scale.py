"""A learned factor on scores, kept inside a range: CLIP's logit scale."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gssf_plug.errors import ArgumentError

__all__ = ["LearnedScale", "checked_range"]


def checked_range(scale_range: tuple[float, float]) -> tuple[float, float]:
    """The two numbers of a range, whose order `LearnedScale` checks.

    Raises:
        ArgumentError: the range is no pair.
    """
    if not isinstance(scale_range, tuple | list) or len(scale_range) != 2:
        rule, remedy = "be two numbers (lowest, highest)", "Such as (0.01, 100.0)."
        raise ArgumentError("scale_range", rule, repr(scale_range), remedy)
    return scale_range[0], scale_range[1]


class LearnedScale(nn.Module):
    r"""scores · exp(θ), exp(θ) inside a range.

    In training θ is put back into its range before each use, as CLIP does it; a clamp in the graph instead would have
    no gradient outside, and θ would stay there for good.

    Args:
        initial: factor at the start, inside the range.
        lowest: smallest factor, above 0.
        highest: largest factor; CLIP's is 100.

    Raises:
        ArgumentError: the three numbers are not 0 < lowest <= initial <= highest < ∞.

    Source: Radford et al., CLIP, arXiv 2103.00020, §2.5.
    """

    def __init__(self, initial: float, lowest: float, highest: float) -> None:
        super().__init__()
        numbers = all(isinstance(one, int | float) and not isinstance(one, bool) for one in (initial, lowest, highest))
        if not numbers or not 0 < lowest <= initial <= highest < math.inf:
            raise ArgumentError(
                "scale",
                "lie in a range of positive numbers, 0 < lowest <= initial <= highest",
                f"{initial} in [{lowest}, {highest}]",
                "Start inside the range, or widen it.",
            )
        self.lowest, self.highest = lowest, highest
        self.log_scale = nn.Parameter(torch.tensor([math.log(initial)]))  # FSDP2 shards no scalars

    def factor(self) -> Float[Tensor, ""]:
        """exp(θ), inside the range."""
        bounds = math.log(self.lowest), math.log(self.highest)
        if self.training:
            with torch.no_grad():
                self.log_scale.clamp_(*bounds)
        return self.log_scale.clamp(*bounds).exp().squeeze()

    def begin(self) -> Callable[[Float[Tensor, "n m"]], Float[Tensor, "n m"]]:
        """Scores to scaled scores, in their own dtype, with the factor of now; for all strips of one batch."""
        factor = self.factor()
        return lambda scores: scores * factor.to(scores.dtype)

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"factor={self.log_scale.exp().item():.3g} in [{self.lowest:g}, {self.highest:g}]"
