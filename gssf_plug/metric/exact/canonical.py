r"""One score for two rows: what decides where fast scores come too close to each other.

    s(x, y) = Σ_d f_d y_d / (‖x‖ ‖y‖),        f = x (W ⊙ U)

in float64 from the rows as they were given, not yet rounded by a normalisation: f by `exact_product`, the sum of the D
products and the two squared norms correctly rounded (`correct_sums`), then one fixed sequence of single operations,
each of them correctly rounded, the root too (`correct_roots`). So the value depends on the two rows and the metric
alone. Equal rows have equal scores, in whichever dtype they are held, in whichever order their channels stand; rows of
small whole numbers have equal scores where mathematics says so.
"""

import copy
import functools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gssf_plug.metric.exact.pair_products import pair_products
from gssf_plug.metric.exact.sums import correct_roots, correct_sums, exact_product, power_of_two, scale_rows
from gssf_plug.metric.metric import GSSFMetric
from gssf_plug.metric.structures import Structure

__all__ = [
    "CanonicalQueries",
    "are_short",
    "canonical_items",
    "canonical_queries",
    "canonical_scores",
    "canonical_table",
    "fold_exactly",
    "folds_nothing",
    "near_queries",
]

SHORT_BITS = 20  # of an entry: products have 40, so that 2¹² of them add up exactly in 53
LONGEST_SHORT = 4096
PAIRS_AT_ONCE = 262_144  # entries of rows whose norms are taken at once: 2 MB in float64
PRODUCTS_AT_ONCE = 262_144  # 2 MB of float64: what is made of them stays in the cache


@dataclass(frozen=True)
class CanonicalQueries:
    """Queries, folded once for all their pairs.

    Args:
        folded: f in float64, each row times a power of two.
        exponents: exponents of these powers: f = folded · 2^exponents (less the power that a normalisation takes out
            again).
        squares: ‖x‖² of the rows on the same terms; None where the metric does not normalise.
    """

    folded: Float[Tensor, "n dim"]
    exponents: Int[Tensor, " n"]
    squares: Float[Tensor, " n"] | None

    @functools.cached_property
    def factors(self) -> Float[Tensor, " n"]:
        """What products with `folded` times these are: scores, but for the length of a normalised item."""
        factors = power_of_two(self.exponents)
        return (
            factors
            if self.squares is None
            else torch.where(self.squares > 0, factors / correct_roots(self.squares), 0.0)
        )

    def part(self, rows: slice | Int[Tensor, " some"]) -> "CanonicalQueries":
        """Some of the queries."""
        squares = None if self.squares is None else self.squares[rows]
        return CanonicalQueries(self.folded[rows], self.exponents[rows], squares)

    def opposite(self) -> "CanonicalQueries":
        """The same of -x."""
        return replace(self, folded=-self.folded)


@torch.no_grad()
def canonical_queries(metric: GSSFMetric | None, queries: Float[Tensor, "n dim"]) -> CanonicalQueries:
    """The query side of canonical scores.

    Args:
        metric: the similarity; None means cosine.
        queries: N×D finite features of any float dtype, not yet folded.
    """
    rows, exponents = scale_rows(queries)
    squares = _squares(rows) if metric is None or metric.normalize else None
    folded, folded_exponents = rows, torch.zeros_like(exponents)
    if not folds_nothing(metric):
        folded, folded_exponents = scale_rows(fold_exactly(cast(GSSFMetric, metric), rows))
    # x and ‖x‖ were scaled alike, so the power leaves a normalised score again
    return CanonicalQueries(folded, folded_exponents + (exponents if squares is None else 0), squares)


@torch.no_grad()
def near_queries(metric: GSSFMetric | None, queries: Float[Tensor, "n dim"], normalize: bool) -> CanonicalQueries:
    """Near the canonical side, whose squares are correctly rounded and cost more than all else here."""
    pieces = queries.split(max(1, PAIRS_AT_ONCE // max(1, queries.shape[1])))  # what is made of each stays in the cache
    folded = torch.empty(queries.shape, dtype=torch.float64, device=queries.device)
    exponents, squares = [], []
    for piece, out in zip(pieces, folded.split(len(pieces[0])), strict=True):
        values, exponent = scale_rows(piece)
        squares.append(values.square().sum(1))
        rows, own_exponent = scale_rows(values if metric is None else fold_exactly(metric, values))
        out.copy_(rows)
        exponents.append(own_exponent if normalize else own_exponent + exponent)
    return CanonicalQueries(folded, torch.cat(exponents), torch.cat(squares) if normalize else None)


def canonical_scores(
    queries: CanonicalQueries,
    rows: Int[Tensor, " pairs"],
    gallery: Float[Tensor, "m dim"],
    columns: Int[Tensor, " pairs"],
) -> Float[Tensor, " pairs"]:
    """Scores of the pairs (query `rows[p]`, gallery item `columns[p]`), in float64.

    Args:
        queries: query side, from `canonical_queries`.
        rows: numbers of queries.
        gallery: M×D finite features of any float dtype, as the user gave them; a row of zeros scores 0.
        columns: numbers of gallery items.
    """
    own = columns.sort()  # pairs of one item stand together: its norm is summed once
    items, counts = own.values.unique_consecutive(return_counts=True)
    sizes = [int(count.sum()) for count in counts.split(max(1, PRODUCTS_AT_ONCE // max(1, gallery.shape[1])))]
    pairs = zip(rows.index_select(0, own.indices).split(sizes), own.values.split(sizes), strict=True)
    if not sizes:
        return queries.folded.new_empty(0)
    scores = torch.cat([_pair_scores(queries, some, gallery, of_items) for some, of_items in pairs])
    return torch.empty_like(scores).index_copy_(0, own.indices, scores)


@torch.no_grad()
def canonical_items(gallery: Float[Tensor, "m dim"], normalize: bool) -> CanonicalQueries:
    """The gallery side of `canonical_table`, on the same terms as queries that nothing is folded into.

    Args:
        gallery: M×D finite features of any float dtype.
        normalize: whether the metric normalises.
    """
    rows, exponents = scale_rows(gallery)
    if not normalize:
        return CanonicalQueries(rows, exponents, None)
    return CanonicalQueries(rows, torch.zeros_like(exponents), _squares(rows))


@torch.no_grad()
def canonical_table(queries: CanonicalQueries, items: CanonicalQueries) -> Float[Tensor, "n m"]:
    """Canonical scores of all pairs by one product, for sides that are both `are_short`."""
    scores = torch.mm(queries.folded, items.folded.T)
    size = max(1, PRODUCTS_AT_ONCE // max(1, len(items.folded)))
    factors = power_of_two(queries.exponents), power_of_two(items.exponents)
    for some in range(0, len(scores), size):
        rows = slice(some, some + size)
        products = scores[rows].add_(0.0)  # no -0.0
        if queries.squares is not None and items.squares is not None:
            squares = queries.squares[rows, None] * items.squares
            # as of single pairs below; what is not 0 is at least 2⁻⁴⁰
            roots = correct_roots(torch.where(squares == 0, 0.0, products * products / squares))
            torch.copysign(roots, products, out=products)
        products.mul_(factors[0][rows, None]).mul_(factors[1])
    return scores


def are_short(rows: CanonicalQueries) -> bool:
    """Whether their products with others that are short, too, add up exactly: ±1, quantised features."""
    return _is_short(rows.folded)


def _pair_scores(
    queries: CanonicalQueries, rows: Int[Tensor, " pairs"], gallery: Tensor, columns: Int[Tensor, " pairs"]
) -> Float[Tensor, " pairs"]:
    items, which = columns.unique_consecutive(return_inverse=True)
    values, exponents = scale_rows(gallery.index_select(0, items.to(gallery.device)).to(queries.folded.device))
    products = _products(queries.folded, rows, values, which)
    if queries.squares is None:
        return _times_powers(products, queries.exponents[rows], exponents[which])
    squares = queries.squares[rows] * _squares(values)[which]
    # sqrt(c² / n²), not c / n: whole numbers with equal c² / n² meet exactly, though √n² is rounded
    root = correct_roots(products * products / squares)
    tiny = products.abs() < 1e-140  # whose square underflows
    cosine = torch.where(tiny, products / correct_roots(squares), root.copysign(products))
    return _times_powers(cosine.masked_fill(squares == 0, 0.0) + 0.0, queries.exponents[rows])


def _products(
    folded: Float[Tensor, "n dim"], rows: Int[Tensor, " pairs"], items: Float[Tensor, "m dim"], which: Int[Tensor, " p"]
) -> Float[Tensor, " pairs"]:
    """Sums of products of some pairs, correctly rounded."""
    if len(rows) > len(items) and _is_short(items) and _is_short(folded):
        return pair_products(folded, rows, items, which) + 0.0  # no sum is rounded, in whichever order
    size = max(1, PRODUCTS_AT_ONCE // max(1, items.shape[1]))
    pairs = zip(rows.split(size), which.split(size), strict=True)
    parts = (folded.index_select(0, own).mul_(items.index_select(0, other)) for own, other in pairs)
    return torch.cat([correct_sums(part) for part in parts])


def _is_short(rows: Float[Tensor, "n dim"]) -> bool:
    """Whether scaled rows have so few bits that sums of their products are exact: ±1, quantised features."""
    if rows.shape[1] > LONGEST_SHORT:
        return False
    for part in (rows[:1], rows):  # most rows say at once that they are not
        grid = part * 2.0**SHORT_BITS
        if not bool((grid == grid.round()).all()):
            return False
    return True


def _squares(rows: Float[Tensor, "n dim"]) -> Float[Tensor, " n"]:
    size = max(1, PRODUCTS_AT_ONCE // max(1, rows.shape[1]))
    return torch.cat([correct_sums(part * part) for part in rows.split(size)])


def _times_powers(values: Float[Tensor, " n"], *exponents: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    for exponent in exponents:
        values = values * power_of_two(exponent)
    return values


def folds_nothing(metric: GSSFMetric | None) -> bool:
    """Whether folded rows are the rows themselves: under cosine, and a metric that is not trained yet."""
    structures = () if metric is None else cast(Iterable[Structure], metric.structures.children())
    return not any(bool(structure.deviation().any()) for structure in structures)


def fold_exactly(metric: GSSFMetric, rows: Float[Tensor, "n dim"]) -> Float[Tensor, "n dim"]:
    """x (W ⊙ U) of float64 rows with the metric's weights in float64, the same however many rows come at once."""
    precise = copy.deepcopy(metric).double()
    x = rows if precise.grouping is None else rows[:, precise.grouping]
    for factor in ("first", "second") if precise.constraint == "psd" else ("only",):  # Lᵀ, then L
        y = x
        for structure in cast(Iterable[Structure], precise.structures.children()):
            deviation = structure.deviation()
            if precise.constraint == "symmetric":
                deviation = (deviation + deviation.mT) / 2
            if bool(deviation.any()):  # a neutral part adds nothing
                y = y + exact_product(x, deviation.mT if factor == "first" else deviation)
        x = y
    return x if precise.grouping is None else torch.empty_like(x).index_copy(-1, precise.grouping, x)
