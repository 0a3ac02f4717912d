r"""The same search with half the arithmetic: scores in bfloat16 with a bound on their error, then the few exactly.

    |bf16(x·y) − x·y| ≤ m = ‖x‖ ‖y‖ (3.2 u + D 2⁻²²),    u = 2⁻⁹

2u for rounding both sides, u for the result, the rest for sums in float32. An item whose rounded score lies below the
k-th best rounded score by more than 2m cannot be among the k best, whatever the rounding did. What is left, about three
items for each that is asked for, is scored again in float32, so the result is exact. CPUs that multiply bfloat16 need
half the time; elsewhere, and where a gallery leaves too much undecided, `gssf_plug.metric.search` scores in float32.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["can_screen", "pad_pairs", "screened"]

FEWEST_QUERIES = 128  # below, reading the gallery costs more than the product
MOST_UNDECIDED = 16  # times k
PAIRS_AT_ONCE = 4096

ItemsOf = Callable[[slice | Tensor], Tensor]
Ranked = tuple[Float[Tensor, "n _"], Int[Tensor, "n _"]]  # of equal width


def can_screen(folded: Float[Tensor, "n dim"]) -> bool:
    """Whether bfloat16 products are the faster ones for these queries."""
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    fits = folded.device.type == "cpu" and folded.dtype == torch.float32 and len(folded) >= FEWEST_QUERIES
    return fits and supported is not None and supported()


def screened(
    folded: Float[Tensor, "n dim"],
    items_of: ItemsOf,
    parts: Sequence[slice],
    k: int,
    hidden_of: Callable[[slice], Bool[Tensor, "n m"] | None],
) -> Ranked | None:
    """The k best of unit items, by score and then by index; None where screening does not decide enough.

    Args:
        folded: queries.
        items_of: normalised items of a slice, or of single indices.
        parts: slices of the gallery, in order.
        k: how many.
        hidden_of: the pairs of a slice that must not be returned.
    """
    margin = torch.linalg.vector_norm(folded, dim=1) * (1.001 * (3.2 * 2**-9 + folded.shape[1] * 2**-22))
    kept = (folded.new_full((len(folded), k), float("-inf")), torch.full((len(folded), k), -1))
    waiting: list[Ranked] = []
    for part in parts:
        rough = folded.bfloat16() @ items_of(part).bfloat16().T
        hidden = hidden_of(part)
        if hidden is not None:
            rough.masked_fill_(hidden, float("-inf"))
        possible = _undecided(rough, kept[0][:, k - 1], margin, k)
        if possible is None:
            return None
        rows, columns = possible.nonzero(as_tuple=True)
        waiting.append(pad_pairs(len(folded), rows, columns + part.start, rough[rows, columns].float()))
        if sum(scores.shape[1] for scores, _ in waiting) >= k:
            kept, waiting = _kept([kept, *waiting], margin, k), []
    return _rescored(folded, items_of, _kept([kept, *waiting], margin, k), k)


def _undecided(
    rough: Float[Tensor, "n m"], worst: Float[Tensor, " n"], margin: Float[Tensor, " n"], k: int
) -> Bool[Tensor, "n m"] | None:
    possible = _above(rough, worst - 2 * margin)
    if int(possible.count_nonzero()) > 4 * k * len(rough):  # an early part, or one that is better than all before
        best = rough.topk(min(k, rough.shape[1]), dim=1).values[:, -1].float()
        possible = _above(rough, torch.maximum(worst, best) - 2 * margin)
    return possible if int(possible.count_nonzero()) <= MOST_UNDECIDED * k * len(rough) else None


def _above(rough: Float[Tensor, "n m"], bound: Float[Tensor, " n"]) -> Bool[Tensor, "n m"]:
    """Where a score reaches the bound, which is rounded down so that the comparison stays in bfloat16."""
    lower = bound.bfloat16()
    lower = torch.where(lower > bound, torch.nextafter(lower, torch.full_like(lower, float("-inf"))), lower)
    return rough >= lower.clamp_min(torch.finfo(lower.dtype).min)[:, None]


def _kept(found: Sequence[Ranked], margin: Float[Tensor, " n"], k: int) -> Ranked:
    """All that may still be among the best, by falling rounded score."""
    scores, order = torch.cat([part[0] for part in found], dim=1).sort(dim=1, descending=True)
    indices = torch.cat([part[1] for part in found], dim=1).gather(1, order)
    width = max(k, int((scores >= (scores[:, k - 1] - 2 * margin)[:, None]).sum(1).max()))
    return scores[:, :width], indices[:, :width]


def _rescored(folded: Tensor, items_of: ItemsOf, kept: Ranked, k: int) -> Ranked:
    indices, order = kept[1].sort(dim=1)
    rows, places = (kept[0].gather(1, order) > float("-inf")).nonzero(as_tuple=True)
    exact = torch.full_like(kept[0], float("-inf"))
    for part in torch.arange(len(rows)).split(PAIRS_AT_ONCE):
        row, place = rows[part], places[part]
        exact[row, place] = (folded[row] * items_of(indices[row, place])).sum(dim=1)
    scores, order = exact.sort(dim=1, descending=True, stable=True)
    return scores[:, :k], indices.gather(1, order[:, :k])


def pad_pairs(
    count: int, rows: Int[Tensor, " pairs"], columns: Int[Tensor, " pairs"], values: Float[Tensor, " pairs"]
) -> Ranked:
    """Pairs in order of row and column as matrices of `count` rows, padded with -inf."""
    counts = torch.bincount(rows, minlength=count)
    places = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
    scores = values.new_full((count, int(counts.max())), float("-inf"))
    indices = torch.zeros_like(scores, dtype=torch.long)
    scores[rows, places], indices[rows, places] = values, columns
    return scores, indices
