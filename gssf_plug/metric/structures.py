r"""The parameters of one W ⊙ U, and how a structured matrix multiplies a vector.

Every structure is block-diagonal for some block size s, so one form serves all: K blocks of s×s with K·s = D.

    Diagonal       s = 1        D parameters        U = I
    BlockDiagonal  s = b        D·b parameters      U = blkdiag(1_{b×b}, …)
    Dense          s = D        D² parameters       U = 1
    Masked         s = D        D² stored           any U, given as a boolean matrix

A structure says how far its blocks are from where they started, and adds the product with that deviation to a sum. It
starts either at the identity or at zero, so that a sum of them can start at the identity:

    x (W ⊙ U) = x + Σ x Δ        Δ = blocks - start, one for each structure

The identity is added, not multiplied: a neutral metric changes no bit in any dtype, and in half precision the
deviation is rounded relative to itself, not to the grid around 1 (where bfloat16 steps by 0.8%).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from gssf_plug.errors import ArgumentError

__all__ = [
    "BlockDiagonal",
    "Change",
    "Dense",
    "Diagonal",
    "Masked",
    "Structure",
    "add_product",
    "build_structures",
    "coarsen",
    "neutral_blocks",
]

FASTEST, FEW = 16, 32  # side of a block, number of rows

Change = Callable[[Tensor], Tensor]


class Structure(nn.Module):
    """One W ⊙ U. Subclasses store `weight` and say what its deviation, its product and its penalty are.

    Args:
        dim: number of channels D.
        block_size: side s of a block, a divisor of D.
        identity: True starts at the identity, False at zero.
    """

    weight: nn.Parameter

    def __init__(self, dim: int, block_size: int, identity: bool) -> None:
        super().__init__()
        self.dim = dim
        self.block_size = block_size
        self.identity = identity

    def forward(self, y: Tensor | None = None, x: Tensor | None = None, change: Change | None = None) -> Tensor:
        """`add_product(y, x, change)`, or `deviation()` where nothing is given.

        A metric asks its structures this way and no other, since a module's hooks run around its forward: accelerate's
        bring an offloaded `weight` in, FSDP's gather it.
        """
        if y is None or x is None or change is None:
            return self.deviation()
        return self.add_product(y, x, change)

    def deviation(self) -> Float[Tensor, "blocks size size"]:
        """Δ: the blocks of W ⊙ U, D/s of them, s×s each, less the identity or zero at which they started."""
        raise NotImplementedError

    def add_product(
        self, y: Float[Tensor, "*n dim"], x: Float[Tensor, "*n dim"], change: Change
    ) -> Float[Tensor, "*n dim"]:
        """y + x Δ; `change` transposes or symmetrises the blocks of Δ first."""
        return add_product(y, x, change(self.deviation()))

    def penalty(self) -> Float[Tensor, ""]:
        """Distance from where the structure started; zero exactly there."""
        raise NotImplementedError

    def reset_parameters(self) -> None:
        """Back to the start: the identity, or zero."""
        start = self.start()
        with torch.no_grad():
            self.weight.copy_(start)

    def start(self) -> Tensor:
        """The neutral value of `weight`, in its shape, dtype and device."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"dim={self.dim}, parameters={self.weight.numel()}"


class Diagonal(Structure):
    """U = I: one weight per channel, Σ_m w_m x_m y_m. The paper's Diag term.

    The penalty is Σ_m (w_m - start)².
    """

    def __init__(self, dim: int, *, identity: bool = True) -> None:
        super().__init__(dim, 1, identity)
        self.weight = nn.Parameter(torch.full((dim,), float(identity)))

    def start(self) -> Float[Tensor, " dim"]:
        """Ones, or zeros."""
        return torch.full_like(self.weight, float(self.identity))

    def departure(self) -> Float[Tensor, " dim"]:
        """w - start."""
        return self.weight - 1 if self.identity else self.weight

    def deviation(self) -> Float[Tensor, "dim 1 1"]:
        """D blocks of 1×1."""
        return self.departure()[:, None, None]

    def add_product(
        self, y: Float[Tensor, "*n dim"], x: Float[Tensor, "*n dim"], change: Change
    ) -> Float[Tensor, "*n dim"]:
        """y + x ⊙ (w - start); a diagonal is symmetric, so there is nothing to change."""
        return torch.addcmul(y, x, self.departure().to(x.dtype))

    def penalty(self) -> Float[Tensor, ""]:
        """Sum of squared deviations."""
        return self.departure().square().sum()


class BlockDiagonal(Structure):
    """U = blkdiag(1_{b×b}, …): every channel meets the others of its block. The paper's B-Diag term.

    The penalty is the group lasso Σ_k ‖B_k - start‖_F over blocks, which draws whole blocks to their start. A dropped
    block stays there: only the `kept` ones are stored, trained and multiplied (None: all of them).
    """

    kept: Int[Tensor, " kept"] | None

    def __init__(self, dim: int, block_size: int, *, identity: bool = False) -> None:
        super().__init__(dim, block_size, identity)
        self.weight = nn.Parameter(torch.empty(dim // block_size, block_size, block_size))
        self.register_buffer("kept", None)
        self.reset_parameters()

    def start(self) -> Float[Tensor, "kept size size"]:
        """Identity blocks, or zeros."""
        return float(self.identity) * neutral_blocks(self.weight)

    def departure(self) -> Float[Tensor, "kept size size"]:
        """B - start, of the kept blocks."""
        return self.weight - self.start() if self.identity else self.weight

    def deviation(self) -> Float[Tensor, "blocks size size"]:
        """All blocks, zero where dropped; D blocks of 1×1 where all are dropped."""
        departure = self.departure()
        if self.kept is None:
            return departure
        if len(self.kept) == 0:
            return departure.new_zeros(self.dim, 1, 1)
        nothing = departure.new_zeros(self.dim // self.block_size, self.block_size, self.block_size)
        # out of place, so that gradients reach the kept blocks through it
        return nothing.index_copy(0, self.kept, departure)

    def add_product(
        self, y: Float[Tensor, "*n dim"], x: Float[Tensor, "*n dim"], change: Change
    ) -> Float[Tensor, "*n dim"]:
        """y + x Δ; only the kept blocks are multiplied."""
        deviation = change(self.departure())
        if self.kept is None:
            return add_product(y, x, deviation)
        if len(self.kept) == 0:
            return y
        sums, rows = (part.reshape(-1, self.dim // self.block_size, self.block_size) for part in (y, x))
        # one product for each kept block: (kept, rows, b) times (kept, b, b)
        added = torch.bmm(rows[:, self.kept].transpose(0, 1), deviation.to(x.dtype)).transpose(0, 1)
        return sums.index_add(1, self.kept, added).reshape(x.shape)

    def distances(self) -> Float[Tensor, " kept"]:
        """‖B_k - start‖_F of every kept block."""
        return torch.linalg.vector_norm(self.departure(), dim=(-2, -1))

    def penalty(self) -> Float[Tensor, ""]:
        """Sum of Frobenius norms."""
        return self.distances().sum()

    def drop(self, threshold: float) -> Int[Tensor, " dropped"]:
        """Drop the blocks within `threshold` of their start; the numbers of all that are dropped by now."""
        everything = torch.arange(self.dim // self.block_size, device=self.weight.device)
        far = self.distances() > threshold
        kept = (everything if self.kept is None else self.kept)[far]
        if not bool(far.all()):
            self.weight = nn.Parameter(self.weight.detach()[far].clone(), requires_grad=self.weight.requires_grad)
            self.kept = kept
        return everything[~torch.isin(everything, kept)]

    def extra_repr(self) -> str:
        """What `print` shows."""
        dropped = "" if self.kept is None else f", dropped={self.dim // self.block_size - len(self.kept)}"
        return f"dim={self.dim}, block_size={self.block_size}, parameters={self.weight.numel()}{dropped}"

    def adopt_kept(self, kept: Int[Tensor, " kept"]) -> None:
        """Take over which blocks another metric kept; the weights that belong to them are loaded afterwards.

        Raises:
            ArgumentError: not increasing block numbers.
        """
        blocks = self.dim // self.block_size
        listed = kept.ndim == 1 and kept.dtype == torch.long
        if not (listed and bool((kept.diff() > 0).all()) and bool(((kept >= 0) & (kept < blocks)).all())):
            got = f"{kept.dtype} of shape {tuple(kept.shape)}"
            raise ArgumentError("kept", f"be increasing block numbers below {blocks}", got, "Save the metric again.")
        self.weight = nn.Parameter(self.weight.detach().new_zeros(len(kept), self.block_size, self.block_size))
        self.kept = kept.to(self.weight.device).clone()

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        kept = state_dict.get(prefix + "kept")
        if kept is not None and (
            self.kept is None or self.kept.is_meta or not torch.equal(kept.cpu(), self.kept.cpu())
        ):
            self.adopt_kept(kept)
        super()._load_from_state_dict(state_dict, prefix, *rest)


class Dense(BlockDiagonal):
    """U = 1, a full bilinear form: one block of D×D."""

    def __init__(self, dim: int, *, identity: bool = False) -> None:
        super().__init__(dim, dim, identity=identity)


class Masked(Structure):
    """Any U: a boolean D×D adjacency. D×D weights are stored; only those inside U act and get gradients.

    The penalty is Σ_{i≠j} |w_ij| + Σ_i (w_ii - 1)², which draws single connections to zero.
    """

    adjacency: Bool[Tensor, "dim dim"]

    def __init__(self, adjacency: Bool[Tensor, "dim dim"]) -> None:
        super().__init__(adjacency.shape[0], adjacency.shape[0], identity=True)
        self.register_buffer("adjacency", adjacency.clone())
        self.weight = nn.Parameter(torch.eye(self.dim))

    def start(self) -> Float[Tensor, "dim dim"]:
        """The identity."""
        return neutral_blocks(self.weight)

    def deviation(self) -> Float[Tensor, "1 dim dim"]:
        """One block, zero outside U."""
        return (self.weight * self.adjacency - self.start())[None]

    def penalty(self) -> Float[Tensor, ""]:
        """Lasso over connections, squares on the diagonal."""
        deviation = self.deviation()[0]
        diagonal = deviation.diagonal()
        # all entries by their amount, less the diagonal, which counts by its squares
        return deviation.abs().sum() - diagonal.abs().sum() + diagonal.square().sum()

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"dim={self.dim}, parameters={int(self.adjacency.sum())}"


def neutral_blocks(blocks: Float[Tensor, "*batch size size"]) -> Float[Tensor, "*batch size size"]:
    """Identity blocks in the shape, dtype and device of `blocks`."""
    eye = torch.eye(blocks.shape[-1], dtype=blocks.dtype, device=blocks.device)
    return eye.expand(blocks.shape)


def coarsen(blocks: Float[Tensor, "fine s s"], size: int) -> Float[Tensor, "coarse size size"]:
    """The same block-diagonal matrix in blocks of `size`, a multiple of s; zeros fill the rest."""
    count, fine, _ = blocks.shape
    if fine == size:
        return blocks
    ratio = size // fine
    eye = torch.eye(ratio, dtype=blocks.dtype, device=blocks.device)
    # block k of the coarse matrix is `ratio` fine ones; the identity puts them on its diagonal
    nested = blocks.reshape(count // ratio, ratio, fine, 1, fine)
    placed = nested * eye[:, None, :, None]  # elementwise: autocast would round a matmul with the identity
    return placed.reshape(count // ratio, size, size)


def add_product(
    y: Float[Tensor, "*n dim"], x: Float[Tensor, "*n dim"], blocks: Float[Tensor, "k s s"]
) -> Float[Tensor, "*n dim"]:
    """y + x Δ for rows x and block-diagonal Δ.

    Small blocks are multiplied in blocks of 16, unless the rows are few: measured on a CPU (128×768 rows, forward, then
    with backward), blocks of 8 take 0.5 of the time in 16s, blocks of 2 a sixth; 32s and 64s are slower again. Tensor
    cores want 16, too. For a row or two, as in decoding, widening costs more than it saves.
    """
    blocks = blocks.to(x.dtype)
    count, size, _ = blocks.shape
    if size == 1:
        return torch.addcmul(y, x, blocks.reshape(count))
    if count == 1:
        return y + x @ blocks[0]
    if size < FASTEST and FASTEST % size == 0 and (count * size) % FASTEST == 0 and not _few(x):
        blocks = coarsen(blocks, FASTEST)
        count, size, _ = blocks.shape
    sums, rows = (part.reshape(-1, count, size).transpose(0, 1) for part in (y, x))
    return torch.baddbmm(sums, rows, blocks).transpose(0, 1).reshape(x.shape)


def _few(x: Float[Tensor, "*n dim"]) -> bool:
    """Few rows; never in a graph, whose number of rows stays open."""
    in_graph = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return not in_graph and x.numel() < FEW * x.shape[-1]


def build_structures(dim: int, terms: Sequence[str], block_size: int) -> nn.ModuleDict:
    """One structure per term; the first starts at the identity, the others at zero."""
    built: dict[str, nn.Module] = {}
    for term in terms:
        identity = not built
        if term == "diagonal":
            built[term] = Diagonal(dim, identity=identity)
        elif term == "block_diagonal":
            built[term] = BlockDiagonal(dim, block_size, identity=identity)
        else:
            built[term] = Dense(dim, identity=identity)
    return nn.ModuleDict(built)
