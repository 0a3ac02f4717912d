"""Rows brought to length one, whatever their length was."""

import torch
from jaxtyping import Float
from torch import Tensor

from gssf_plug.arguments import described
from gssf_plug.errors import ArgumentError
from gssf_plug.metric.arrays import check_real

__all__ = ["normalize_rows"]

# beyond 2^±limit squares may leave the dtype in which they are summed; there a power of two 2^∓shift comes first
LIMITS = {torch.float32: (50, 100), torch.float64: (400, 700)}


def normalize_rows(x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
    """x / ‖x‖ over the last dimension, computed in float32 or better, in the dtype of `x`.

    Rows of every length come out with length one, those of 1e30 and of 1e-40 too: they are first scaled by a power of
    two, which rounds nothing. A row of zeros stays zero; it scores 0 with everything.

    Raises:
        ArgumentError: the value is no floating-point tensor with a last dimension, or is not densely stored.

    Example:
        >>> normalize_rows(torch.tensor([[3e30, 4e30], [3e-40, 4e-40], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim == 0:
        remedy = "Convert it, for instance with .float()."
        raise ArgumentError("x", "be a floating-point tensor (..., D)", described(x), remedy)
    check_real("x", x)
    if x.shape[-1] == 0:
        return x
    accumulate = torch.promote_types(x.dtype, torch.float32)
    if x.dtype != torch.float16:  # whose squares stay within float32
        limit, shift = LIMITS[accumulate]
        given = x.detach()
        # on a CPU several times as fast as the norm of order infinity, and without the copy that abs() makes
        largest = torch.maximum(given.amax(-1, keepdim=True), -given.amin(-1, keepdim=True))
        scale = torch.ones_like(largest)
        scale = torch.where(largest > 2.0**limit, 2.0**-shift, scale)
        scale = torch.where((largest > 0) & (largest < 2.0**-limit), 2.0**shift, scale)
        x = x * scale  # by 1 nearly always, so that no bit changes there
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=accumulate)
    return (x / norm.masked_fill(norm == 0, 1e-12)).to(x.dtype)  # a norm above 65,504 would be infinite in float16
