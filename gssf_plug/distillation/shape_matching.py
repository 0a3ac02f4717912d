"""Two features into one shape: a CNN's map and a transformer's tokens, other grids, other lengths, other tokenizers.

    map, map          the teacher's grid is resized to the student's: averaged where it shrinks, bilinear where it grows
    map, tokens       tokens become a map first: ⌊√T⌋² of them, the leading rest are class and register tokens
    tokens, tokens    other lengths: the teacher's valid tokens are read at evenly spaced places (linear interpolation),
                      one for each valid token of the student
    vector, anything  the other side is averaged under its mask

The student's side keeps its shape (maps as tokens), so that its gradients are never blurred. Only widths may differ
afterwards; those are a projector's work.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from gssf_plug.distillation.taps import Feature
from gssf_plug.errors import ArgumentError
from gssf_plug.features import as_tokens, mean_pool

__all__ = ["align", "as_vector"]


def align(student: Feature, teacher: Feature) -> tuple[Tensor, Tensor, Tensor | None]:
    """Vectors (N, D) or tokens (N, T, D) of both, and the mask of the tokens.

    Raises:
        ArgumentError: the batch sizes differ, or the tokens form no square grid that could be compared with a map.
    """
    if len(student.tensor) != len(teacher.tensor):
        raise ArgumentError(
            "batch",
            f"give student and teacher the same examples, {len(student.tensor)} of them",
            f"{len(teacher.tensor)} from the teacher",
            "Check the teacher's inputs.",
        )
    if 2 in (student.tensor.ndim, teacher.tensor.ndim):
        return as_vector(student), as_vector(teacher), None
    if 4 in (student.tensor.ndim, teacher.tensor.ndim):
        ours, theirs = _as_map(student.tensor), _as_map(teacher.tensor)
        return as_tokens(ours), as_tokens(_resize(theirs, ours.shape[-2:])), None
    return student.tensor, _resample(student, teacher), student.mask


def as_vector(feature: Feature) -> Tensor:
    """One vector per example, (N, D): the mean of the valid tokens or of the map."""
    return feature.tensor if feature.tensor.ndim == 2 else mean_pool(as_tokens(feature.tensor), feature.mask)


def _as_map(tensor: Tensor) -> Tensor:
    if tensor.ndim == 4:
        return tensor
    side = math.isqrt(tensor.shape[1])
    # class tokens and registers stand in front: the last side² tokens are the grid
    grid = tensor[:, tensor.shape[1] - side * side :]
    return grid.mT.reshape(len(tensor), tensor.shape[2], side, side)


def _resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    if maps.shape[-2] >= size[0] and maps.shape[-1] >= size[1]:
        return adaptive_avg_pool2d(maps, (size[0], size[1]))
    return interpolate(maps, size=(size[0], size[1]), mode="bilinear", align_corners=False)


def _resample(student: Feature, teacher: Feature) -> Tensor:
    """The teacher's tokens (N, T_t, D) at the places of the student's, (N, T_s, D)."""
    ours, theirs = _valid(student), _valid(teacher)
    if ours.shape == theirs.shape and torch.equal(ours, theirs):
        return teacher.tensor
    place = ours.cumsum(1) - 1  # rank of each valid token of the student
    own, other = ours.sum(1, keepdim=True), theirs.sum(1, keepdim=True)
    # the first valid token meets the first, the last the last, those between lie evenly
    position = place * (other - 1).clamp_min(0) / (own - 1).clamp_min(1)
    position = position.clamp(min=0).minimum((other - 1).clamp_min(0).to(position.dtype))
    order = (~theirs).int().argsort(dim=1, stable=True)  # valid tokens first, in their order
    low = position.floor().long()
    high = torch.minimum(low + 1, (other - 1).clamp_min(0))
    weight = (position - low)[..., None].to(teacher.tensor.dtype)
    # `order` turns ranks among valid tokens into places in the tensor
    below, above = (_pick(teacher.tensor, order.gather(1, index)) for index in (low, high))
    return below + weight * (above - below)


def _valid(feature: Feature) -> Tensor:
    tensor = feature.tensor
    return (
        torch.ones(tensor.shape[:2], dtype=torch.bool, device=tensor.device) if feature.mask is None else feature.mask
    )


def _pick(tokens: Tensor, index: Tensor) -> Tensor:
    return tokens.gather(1, index[..., None].expand(*index.shape, tokens.shape[-1]))
