r"""Which channels share a block: contiguous by default, or found from pairs that belong together.

A block couples its channels, so a good grouping puts those into one block that want to be coupled. What they want is
read off matching pairs (x, y): of two jointly Gaussian vectors the log-odds of matching are bilinear with the matrix

    M = (Σ_x + λI)⁻¹ C (Σ_y + λI)⁻¹,        C = Cov(x̂, ŷ) over pairs,   Σ = Cov over items

to first order in C. The entry M_ij says how much a weight between channel i of x and channel j of y is missed where it
is forced to zero; the affinity a_ij = M_ij² + M_ji² inside blocks is made as large as a greedy start and swaps of two
channels can make it. Our choice; the paper's grouping could not be read. Where dependencies are spread evenly, as in
sentence embeddings, no grouping is much better than another.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gssf_plug.arguments import checked_count
from gssf_plug.errors import ArgumentError
from gssf_plug.metric.arrays import Array, check_has_values, float_features, like_inputs
from gssf_plug.metric.options import checked_block_size
from gssf_plug.metric.unit_rows import normalize_rows

__all__ = ["group_channels"]

AT_LEAST_0 = "be a whole number of at least 0"
RIDGE = 0.1  # λ, as a share of the mean variance of a channel


@torch.no_grad()
def group_channels(
    x: Float[Array, "n dim"], y: Float[Array, "n dim"], block_size: int, *, swaps: int | None = None
) -> Int[Array, " dim"]:
    """A permutation for `GSSFMetric(dim, block_size=block_size, grouping=...)`, found from matching pairs.

    Args:
        x: features of one side of the training set, (N, D).
        y: features of the other side, (N, D); row i belongs to row i of `x`. In one-tower tasks take another item of
            its class.
        block_size: side b of a block, a divisor of D.
        swaps: largest number of swaps after the greedy start; default 4·D. Each costs D² operations.

    Returns:
        The D channel numbers, of which the first b are the first block; ascending inside a block, and blocks in the
        order of their first channel. The same data give the same permutation.

    Raises:
        ArgumentError: the sides have different shapes or fewer than two pairs, a feature is NaN, or the block does not
            divide D.
    """
    given = x
    x, y = float_features("x", x), float_features("y", y)
    _check_pairs(x, y)
    dim = x.shape[1]
    block_size = checked_block_size(block_size, dim)
    swaps = 4 * dim if swaps is None else checked_count("swaps", swaps, "None takes 4·D.", rule=AT_LEAST_0, least=0)
    affinity = _affinity(x, y)
    members = _greedy(affinity, block_size)
    members = _swapped(affinity, members, swaps)
    blocks = members.sort(dim=1).values
    return like_inputs(blocks[blocks[:, 0].argsort()].flatten().to(x.device), given)


def _affinity(x: Tensor, y: Tensor) -> Float[Tensor, "dim dim"]:
    """How much every two channels want a weight between them; zero on the diagonal, symmetric, in float64."""
    x, y = (normalize_rows(side.double().cpu()) for side in (x, y))
    x, y = x - x.mean(0), y - y.mean(0)
    cross = x.T @ y / len(x)
    wanted = torch.linalg.solve(_ridged(x), torch.linalg.solve(_ridged(y), cross.T).T)
    affinity = wanted.square() + wanted.T.square()
    return affinity.fill_diagonal_(0.0)


def _ridged(x: Float[Tensor, "n dim"]) -> Float[Tensor, "dim dim"]:
    covariance = x.T @ x / len(x)
    level = covariance.diagonal().mean().clamp_min(torch.finfo(x.dtype).tiny)
    return covariance + RIDGE * level * torch.eye(x.shape[1], dtype=x.dtype)


def _greedy(affinity: Float[Tensor, "dim dim"], block_size: int) -> Int[Tensor, "blocks size"]:
    """Blocks one after the other: the free channel with the most affinity left, then who adds most to the block."""
    dim = len(affinity)
    free = torch.ones(dim, dtype=torch.bool)
    members = torch.empty(dim // block_size, block_size, dtype=torch.long)
    for block in range(len(members)):
        # the first channel by what it could gain with all that are free, the next ones by what the block gives them
        gain = affinity[:, free].sum(1)
        total = torch.zeros(dim, dtype=affinity.dtype)
        for place in range(block_size):
            chosen = int(gain.masked_fill(~free, float("-inf")).argmax())
            members[block, place] = chosen
            free[chosen] = False
            total += affinity[chosen]
            gain = total
    return members


def _swapped(affinity: Float[Tensor, "dim dim"], members: Int[Tensor, "blocks size"], swaps: int) -> Tensor:
    """Exchange the two channels of different blocks that gain most, until none gains or `swaps` are done."""
    members = members.clone()
    blocks, size = members.shape
    home = torch.empty(len(affinity), dtype=torch.long)
    home[members.flatten()] = torch.arange(blocks).repeat_interleave(size)
    ties = affinity[:, members.flatten()].reshape(len(affinity), blocks, size).sum(2)  # of a channel to a block
    scale = float(affinity.sum()) + torch.finfo(affinity.dtype).tiny
    for _ in range(swaps):
        moving = ties[:, home] - ties.gather(1, home[:, None])  # of i into the block of j
        gains = (moving + moving.T - 2 * affinity).masked_fill_(home[:, None] == home, float("-inf"))
        best = int(gains.argmax())
        first, second = divmod(best, len(affinity))
        if float(gains.flatten()[best]) <= 1e-12 * scale:
            break
        change = affinity[:, second] - affinity[:, first]
        # the two blocks changed by one channel each: two columns are put right, nothing is summed anew
        ties[:, home[first]] += change
        ties[:, home[second]] -= change
        home[[first, second]] = home[[second, first]]
    return home.argsort(stable=True).reshape(blocks, size)


def _check_pairs(x: Tensor, y: Tensor) -> None:
    if x.ndim != 2 or x.shape != y.shape:
        got = f"{tuple(x.shape)} and {tuple(y.shape)}"
        raise ArgumentError("y", "have the shape of `x`, N×D, row by row its partner", got, "Repeat rows where needed.")
    if len(x) < 2:
        raise ArgumentError("x", "hold at least two pairs", len(x), "Give features of the training set.")
    for name, side in (("x", x), ("y", y)):
        check_has_values(name, side)
        finite = side.isfinite().all(dim=1)
        if not bool(finite.all()):
            row = int((~finite).nonzero()[0])
            raise ArgumentError(name, "be finite", f"NaN or infinity in row {row}", "Find what made it, or drop it.")
