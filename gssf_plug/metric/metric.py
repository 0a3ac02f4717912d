r"""GSSFMetric: normalise, fold, score.

    s(x, y) = x̂ᵀ (W ⊙ U) ŷ          x̂ = x / ‖x‖

The matrix is linear on the query side, so it is multiplied into the queries once, `fold(x) = x̂ (W ⊙ U)`, and every
pair is one inner product again. N×M×D is never formed, and the gallery side stays free of W.

Promises: neutral at start, to the bit; float32, bfloat16, float16, float64, autocast, `torch.compile(fullgraph=True)`,
`torch.export`. NaN features pass through as NaN here (a check would stop compilation); `topk`, the evaluation functions
and the trainer refuse them by name.

Source: Diao et al., "GSSF", IEEE TIP 2024, arXiv 2410.15266. Block size, grouping, how the terms combine and the start
at the identity are our choices; the paper's could not be read.
"""

from collections.abc import Iterable, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self, cast, overload

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from gssf_plug.arguments import LARGEST, WHOLE, checked_count, checked_flag, checked_number
from gssf_plug.errors import ArgumentError
from gssf_plug.files import CardFacts, Format, HubModule, render_card
from gssf_plug.metric.arrays import Array, check_broadcast, check_has_values, float_features, like_inputs
from gssf_plug.metric.checkpoint import read_metric
from gssf_plug.metric.options import (
    Constraint,
    Term,
    canonical_terms,
    check_adjacency,
    check_constraint,
    checked_block_size,
    checked_grouping,
)
from gssf_plug.metric.structures import (
    BlockDiagonal,
    Change,
    Masked,
    Structure,
    add_product,
    build_structures,
    coarsen,
    neutral_blocks,
)
from gssf_plug.metric.unit_rows import normalize_rows

__all__ = ["GSSFMetric", "Pruned", "normalize_rows"]

USAGE = """from gssf_plug import GSSFMetric

metric = GSSFMetric.from_pretrained(path)
scores = metric(queries, gallery)"""


def _unchanged(blocks: Tensor) -> Tensor:
    return blocks


def _transposed(blocks: Tensor) -> Tensor:
    return blocks.mT


def _symmetric(blocks: Tensor) -> Tensor:
    return (blocks + blocks.mT) / 2


class Pruned(NamedTuple):
    """What `prune` did.

    Per term the numbers of the blocks that are `dropped` by now and how many `blocks` there were; the metric's
    parameters `before` and `after`.
    """

    dropped: dict[Term, list[int]]
    blocks: dict[Term, int]
    before: int
    after: int


class GSSFMetric(nn.Module, HubModule, library_name="gssf-plug"):
    r"""A learned similarity x̂ᵀ (W ⊙ U) ŷ, equal to cosine until it is trained.

    Args:
        dim: number of channels D of a feature, at least 1.
        terms: structures that are summed: any of "diagonal" (D parameters), "block_diagonal" (D·block_size) and "dense"
            (D²). The first of them, in this order, starts at the identity, the others at zero. Default: the first two.
        block_size: side b of a block, a divisor of `dim`; default 16. It is only read with "block_diagonal".
        normalize: True (default) scores directions; False scores raw vectors, as attention does. Without normalisation
            W can vanish into a linear layer before it.
        constraint: None (default) leaves M free; "symmetric" takes (M + Mᵀ)/2, so that s(x, y) = s(y, x); "psd" takes M
            = LᵀL of one structured L that starts at the identity, so that s(x, x) ≥ 0.
        grouping: permutation of the D channels, of which grouping[0:b] share the first block; None (default) takes them
            as they lie.
        adjacency: boolean D×D matrix U that takes the place of `terms` and `block_size`. It contains the diagonal, and
            is symmetric for `constraint="symmetric"`; "psd" refuses it, since LᵀL leaves U. Default none.

    Shape:
        queries (..., N, D), gallery (..., M, D) -> scores (..., N, M), in the dtype of the features.

    Raises:
        ArgumentError: a block does not divide D, a term or constraint is unknown, the grouping or the adjacency is
            invalid, or features have another width.

    Example:
        >>> metric = GSSFMetric(dim=8, block_size=4)
        >>> x, y = torch.randn(3, 8), torch.randn(5, 8)
        >>> metric(x, y).shape
        torch.Size([3, 5])
        >>> torch.allclose(metric(x, y), metric.fold(x) @ metric.gallery(y).T)
        True
    """

    file_format: ClassVar[Format] = Format("gssf-plug/metric")
    grouping: Int[Tensor, " dim"] | None

    def __init__(
        self,
        dim: int,
        *,
        terms: Sequence[Term] = ("diagonal", "block_diagonal"),
        block_size: int = 16,
        normalize: bool = True,
        constraint: Constraint | None = None,
        grouping: Int[Tensor, " dim"] | None = None,
        adjacency: Bool[Tensor, "dim dim"] | None = None,
    ) -> None:
        super().__init__()
        dim = checked_count("dim", dim, "Give the width of the features.", rule=WHOLE, most=LARGEST)
        self.normalize = checked_flag("normalize", normalize)
        check_constraint(constraint)
        if adjacency is None:
            self.terms: tuple[Term, ...] = canonical_terms(terms)
            self.block_size = checked_block_size(block_size, dim, divides="block_diagonal" in self.terms)
            self.structures = build_structures(dim, self.terms, self.block_size)
        else:
            check_adjacency(adjacency, dim, constraint)
            self.terms, self.block_size = (), dim
            self.structures = nn.ModuleDict({"adjacency": Masked(adjacency)})
        self.dim = dim
        self.constraint: Constraint | None = constraint
        self.register_buffer("grouping", None if grouping is None else checked_grouping(grouping, dim))

    def forward(
        self, queries: Float[Array, "*#batch n dim"], gallery: Float[Array, "*#batch m dim"]
    ) -> Float[Array, "*#batch n m"]:
        """Scores of all pairs. Leading dimensions are batches, broadcast as in `torch.matmul`; numpy gives numpy.

        Sides of two dtypes are scored in the one that holds both, as torch promotes them.

        Raises:
            ArgumentError: a side has fewer than two dimensions, another width, or others that cannot be broadcast.
        """
        sides = {"queries": float_features("queries", queries), "gallery": float_features("gallery", gallery)}
        for name, features in sides.items():
            if features.ndim < 2:
                rule, got = "be a matrix of features (..., N, D)", f"shape {tuple(features.shape)}"
                remedy = "Add a dimension with features[None], or score pairs with metric.pairwise(x, y)."
                raise ArgumentError(name, rule, got, remedy)
        check_broadcast(("queries", "gallery"), (sides["queries"].shape[:-2], sides["gallery"].shape[:-2]))
        folded, items = self.fold(sides["queries"]), self.gallery(sides["gallery"])
        if folded.dtype != items.dtype:  # a product, unlike a sum, is refused by torch then
            common = torch.promote_types(folded.dtype, items.dtype)
            folded, items = folded.to(common), items.to(common)
        return like_inputs(folded @ items.mT, queries, gallery)

    @overload
    def pairwise(
        self, x: Float[Tensor, "*#batch dim"], y: Float[Tensor, "*#batch dim"]
    ) -> Float[Tensor, "*#batch"]: ...
    @overload
    def pairwise(self, x: Float[Array, "*#batch dim"], y: Float[Array, "*#batch dim"]) -> Float[Array, "*#batch"]: ...
    def pairwise(self, x: Float[Array, "*#batch dim"], y: Float[Array, "*#batch dim"]) -> Float[Array, "*#batch"]:
        """Scores of pairs: s(x[i], y[i]). Shapes (..., D), (..., D) -> (...), in the dtype that holds both."""
        left, right = float_features("x", x), float_features("y", y)
        check_broadcast(("x", "y"), (left.shape[:-1], right.shape[:-1]))
        return like_inputs((self.fold(left) * self.gallery(right)).sum(-1), x, y)

    aligned = pairwise  # its older name

    @overload
    def fold(self, queries: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]: ...
    @overload
    def fold(self, queries: Float[np.ndarray, "*batch dim"]) -> Float[np.ndarray, "*batch dim"]: ...
    def fold(self, queries: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        """The query side, x̂ (W ⊙ U), in the caller's channel order; costs N·D·b for N queries, less where pruned."""
        x = self._checked("queries", queries)
        x = normalize_rows(x) if self.normalize else x
        if self.grouping is None:
            return like_inputs(self._multiply(x), queries)
        folded = self._multiply(x[..., self.grouping])
        # the inverse permutation as a scatter: no second index has to be kept
        return like_inputs(torch.empty_like(folded).index_copy(-1, self.grouping, folded), queries)

    @overload
    def gallery(self, items: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]: ...
    @overload
    def gallery(self, items: Float[np.ndarray, "*batch dim"]) -> Float[np.ndarray, "*batch dim"]: ...
    def gallery(self, items: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        """The gallery side: normalised, free of W. Index it once; a new W needs no re-indexing."""
        features = self._checked("items", items)
        return like_inputs(normalize_rows(features) if self.normalize else features, items)

    def blocks(self) -> Float[Tensor, "blocks size size"]:
        """The matrix as diagonal blocks, constraint applied, channels in the order of `grouping`."""
        deviation = self.deviation()
        return deviation + neutral_blocks(deviation)

    def deviation(self) -> Float[Tensor, "blocks size size"]:
        """Δ, `blocks()` less the identity: zero for a neutral metric."""
        parts = [structure() for structure in self._each()]
        size = max(part.shape[-1] for part in parts)
        deviation = reduce(torch.add, [coarsen(part, size) for part in parts])
        if self.constraint == "psd":  # LᵀL - I, where L = I + Δ
            with torch.autocast(deviation.device.type, enabled=False):  # Δ must not be rounded to half precision
                return deviation + deviation.mT + deviation.mT @ deviation
        return _symmetric(deviation) if self.constraint == "symmetric" else deviation

    def matrix(self) -> Float[Tensor, "dim dim"]:
        """The dense D×D matrix W ⊙ U in the caller's channel order, for reading and tests: s(x, y) = x̂ᵀ M ŷ."""
        dense = coarsen(self.blocks(), self.dim)[0]
        if self.grouping is None:
            return dense
        return torch.empty_like(dense).index_put((self.grouping[:, None], self.grouping), dense)

    def log_determinant(self) -> Float[Tensor, ""]:
        """``log(abs(det(W ⊙ U)))``, block by block; -inf where the matrix is singular."""
        blocks = self.blocks()
        precise = blocks.to(torch.promote_types(blocks.dtype, torch.float32))
        return torch.linalg.slogdet(precise).logabsdet.sum()

    def penalty(self) -> Float[Tensor, ""]:
        r"""Distance from neutral, zero exactly there: Σ_m (w_m - 1)² + Σ_k ‖B_k - start‖_F.

        The second sum is a group lasso: it draws whole blocks to neutral, so that `prune` can drop them. It measures
        from the start, not from zero: shrinking the blocks of B-Diag alone to zero would kill channels. With
        `constraint="psd"` it is the distance of L. For `adjacency` see `Masked`.
        """
        return torch.stack([structure.penalty() for structure in self._each()]).sum()

    @torch.no_grad()
    def prune(self, threshold: float) -> Pruned:
        """Return blocks near neutral to neutral and drop them: from the fold's cost, the parameters and the files.

        Train with `penalty()` in the loss, prune, and train on if wanted: a dropped block stays neutral. The parameters
        are new ones, so an optimizer made before must be made again. What `diagonal` learned is kept.

        Args:
            threshold: largest distance ‖B_k - start‖_F at which a block is dropped, at least 0. The distances are
                `metric.structures["block_diagonal"].distances()`; with `constraint="psd"` B_k is a block of L.

        Raises:
            ArgumentError: the threshold is negative, or the metric has no blocks.
        """
        blocked = {name: part for name, part in self.structures.items() if isinstance(part, BlockDiagonal)}
        if not blocked:
            rule, remedy = "hold 'block_diagonal' or 'dense' where blocks are pruned", "There is nothing to drop."
            raise ArgumentError("terms", rule, repr(self.terms), remedy)
        remedy = "Choose it from metric.structures['block_diagonal'].distances()."
        threshold = checked_number("threshold", threshold, "be at least 0", remedy, lambda number: number >= 0)
        before = _count_parameters(self)
        dropped = {cast(Term, name): part.drop(threshold).tolist() for name, part in blocked.items()}
        blocks = {cast(Term, name): self.dim // part.block_size for name, part in blocked.items()}
        return Pruned(dropped, blocks, before, _count_parameters(self))

    def reset_parameters(self) -> None:
        """Back to neutral: scores equal cosine again."""
        for structure in self._each():
            structure.reset_parameters()

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"dim={self.dim}, normalize={self.normalize}, constraint={self.constraint}"

    def file_config(self) -> dict[str, Any]:
        """The constructor's arguments; the tensors among them are kept with the weights."""
        return {
            "dim": self.dim,
            "terms": list(self.terms),
            "block_size": self.block_size,
            "normalize": self.normalize,
            "constraint": self.constraint,
            "grouped": self.grouping is not None,
        }

    @classmethod
    def from_files(cls, config: dict[str, Any], tensors: dict[str, Tensor], folder: Path) -> Self:
        """A metric from its configuration and tensors, whoever wrote them; see `metric.checkpoint`.

        Raises:
            CheckpointError: the files do not describe a metric; nothing is allocated for numbers in the configuration.
        """
        return read_metric(cls, config, tensors, folder)

    def model_card(self, facts: CardFacts | None = None) -> str:
        """Front matter, what it is, its data and measures as far as `facts` say, how to load it."""
        about = (
            "A learned similarity x̂ᵀ(W⊙U)ŷ (GSSF, IEEE TIP 2024, arXiv 2410.15266) for features of "
            f"{self.dim} channels: {', '.join(self.terms) or 'adjacency'}, {_count_parameters(self):,} parameters."
        )
        return render_card("GSSF metric", about, USAGE, ("metric-learning", "gssf"), facts)

    def _each(self) -> Iterable[Structure]:
        structures = cast(nn.ModuleDict, self._modules["structures"])  # 0.3 µs; by attribute 0.9
        return cast(Iterable[Structure], structures._modules.values())

    def _multiply(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """x (W ⊙ U), channels in the order of `grouping`.

        Each structure adds its product; with "psd" that is done for Lᵀ, then for L. In half precision every sum rounds:
        there the deviations are summed first, unless blocks were dropped, which are not multiplied at all.
        """
        if x.dtype.itemsize < 4 and not self._pruned():
            return add_product(x, x, self.deviation())
        if self.constraint == "psd":
            return self._add_products(self._add_products(x, _transposed), _unchanged)  # x Lᵀ L
        return self._add_products(x, _symmetric if self.constraint == "symmetric" else _unchanged)

    def _add_products(self, x: Float[Tensor, "*batch dim"], change: Change) -> Float[Tensor, "*batch dim"]:
        y = x
        for structure in self._each():
            y = structure(y, x, change)
        return y

    def _pruned(self) -> bool:
        return any(isinstance(part, BlockDiagonal) and part.kept is not None for part in self._each())

    def _checked(self, name: str, given: object) -> Tensor:
        features = float_features(name, given)
        if features.ndim == 0 or features.shape[-1] != self.dim:
            raise ArgumentError(
                name,
                f"have {self.dim} channels in its last dimension",
                f"shape {tuple(features.shape)}",
                f"Project the features to {self.dim}, or build GSSFMetric with their width.",
            )
        if features.device.type == "meta" and not any(one.is_meta for one in self.parameters()):
            check_has_values(name, features)
        return features


def _count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
