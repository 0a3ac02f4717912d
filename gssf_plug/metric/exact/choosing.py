r"""The k best of rows of float64 scores: sorted, rounded, and canonical wherever that could be decided either way.

A block of rows takes all these steps while it is in the cache. What is left open is remembered: places whose rounding
the bound of the score allows either way, and rows in which two scores are nearer to each other than twice that.
"""

from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gssf_plug.metric.exact.canonical import CanonicalQueries, canonical_scores
from gssf_plug.metric.exact.falling import MOST_BITS, Apart, Falling, RowSorter, sort_in_blocks

__all__ = ["Ranked", "RowsOfScores", "choose_best"]

BEYOND = 8  # places behind the k-th that are looked at for a gap
FEW = 8  # where less than an 8th of the scores is asked for, torch chooses them sooner than numpy sorts

Slack = TypeVar("Slack", Tensor, np.ndarray)
Ranked = tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]


@dataclass(frozen=True)
class RowsOfScores:
    """Float64 scores of some queries.

    Args:
        queries: canonical side of the queries.
        gallery: the gallery as it was given.
        scores: scores, -inf where there is none.
        indices: the gallery items that have them, rising but for those of -inf; None where these are all.
        slack: how far a score of each row may be off: (D + 32) · 2⁻⁵² of the largest that one can be, or more.
    """

    queries: CanonicalQueries
    gallery: Tensor
    scores: Float[Tensor, "n w"]
    indices: Int[Tensor, "n w"] | None
    slack: Float[Tensor, " n"]

    def canonical(self, rows: Int[Tensor, " p"], items: Int[Tensor, " p"]) -> Float[Tensor, " p"]:
        """Canonical scores of pairs of a row and a gallery item."""
        return canonical_scores(self.queries, rows, self.gallery, items)


class _TiedRows(NamedTuple):
    """Rows in which two scores are near, their best scores, falling but for these, and who has them."""

    rows: Int[Tensor, " t"]
    best: Float[Tensor, "t w"]
    columns: Int[Tensor, "t w"]
    apart: Float[Tensor, "t 1"]


class _Open(NamedTuple):
    """What float64 leaves open in some rows: places of the result, as rows and columns; and rows with near ties."""

    rows: Int[Tensor, " p"]
    places: Int[Tensor, " p"]
    tied: _TiedRows | None


def choose_best(given: RowsOfScores, result: Ranked) -> None:
    """Write the best of each row, best first: near ties by canonical score, equal ones in order of gallery index.

    Args:
        given: rows of scores.
        result: n×k scores, in the dtype that they shall have, and the gallery items' numbers; -inf and -1 where a row
            has fewer.
    """
    k = min(result[0].shape[1], given.scores.shape[1])
    for part, missing in zip(result, (float("-inf"), -1), strict=True):
        part[:, k:] = missing
    if not k or not len(given.scores):
        return
    best, indices = (part[:, :k] for part in result)
    size = given.scores.shape[1]
    sorts = given.scores.device.type == "cpu" and (k + BEYOND) * FEW >= size and size <= 1 << MOST_BITS
    left = (_choose_in_blocks if sorts else _choose_at_once)(given, best, indices)
    rows, places = torch.cat([some.rows for some in left]), torch.cat([some.places for some in left])
    if len(rows):
        best[rows, places] = given.canonical(rows, indices[rows, places]).to(best.dtype)
    tied = [some.tied for some in left if some.tied is not None]
    for width in {some.best.shape[1] for some in tied}:
        same = [some for some in tied if some.best.shape[1] == width]
        _settle(given, _TiedRows(*(torch.cat(each) for each in zip(*same, strict=True))), best, indices)


def _choose_in_blocks(given: RowsOfScores, best: Tensor, indices: Tensor) -> list[_Open]:
    """By numpy, on several threads."""
    k, dim = best.shape[1], given.gallery.shape[1]
    scores_out, indices_out, slacks = best.numpy(), indices.numpy(), given.slack.numpy()[:, None]
    items = None if given.indices is None else given.indices.numpy()

    def take(sorter: RowSorter, rows: slice, scores: np.ndarray) -> _Open:
        slack = slacks[rows]
        found = _with_a_gap(sorter, scores, k, lambda grain: 2 * _unsure(slack, grain, dim))
        width = found.best.shape[1]
        first, columns, rounded = found.best[:, :k], found.columns[:, :k], scores_out[rows]
        lower = sorter.spare(first.shape, rounded.dtype)
        np.subtract(first, slack, out=lower, casting="same_kind")
        np.add(first, slack, out=rounded, casting="same_kind")
        indices_out[rows] = columns if items is None else np.take_along_axis(items[rows], columns, axis=1)
        if first[:, -1].min() == -np.inf:  # these fall, too
            indices_out[rows][first == -np.inf] = -1
        undecided = lower != rounded
        tied, left = np.unique(found.near[found.near % width < k] // width), None
        if len(tied):
            undecided[tied] = False
            parts = tied + rows.start, found.best[tied], found.columns[tied], 2 * _unsure(slack[tied], found.grain, dim)
            left = _TiedRows(*map(torch.from_numpy, parts))
        at = np.flatnonzero(undecided)  # ten times as fast as by rows and columns
        return _Open(torch.from_numpy(at // k + rows.start), torch.from_numpy(at % k), left)

    return sort_in_blocks(given.scores, take)


def _with_a_gap(sorter: RowSorter, scores: np.ndarray, k: int, apart: Apart) -> Falling:
    """So many of the best that behind the k-th there is a gap: nothing beyond it equals what stands before it."""
    width = min(k + BEYOND, sorter.size)
    while True:
        found = sorter(scores, width, apart)
        if width == sorter.size:
            return found
        near = found.best[:, k - 1 : -1] - found.best[:, k:] <= apart(found.grain) + found.beyond
        if not near.all(axis=1).any():
            return found
        width = min(4 * width, sorter.size)


def _choose_at_once(given: RowsOfScores, best: Tensor, indices: Tensor) -> list[_Open]:
    """By torch, on any device."""
    (size, k), slack = (given.scores.shape[1], best.shape[1]), given.slack[:, None]
    width, apart = k + BEYOND, 2 * _unsure(slack, 0.0, 1)
    while True:
        width = min(width, size)
        found, columns = given.scores.topk(width, dim=1)
        near = found[:, :-1] - found[:, 1:] <= apart  # never true of -inf, whose difference is no number
        if width == size or not bool(near[:, k - 1 :].all(1).any()):
            break
        width *= 4
    first = found[:, :k]
    best.copy_(first + slack)
    numbers = columns[:, :k] if given.indices is None else given.indices.gather(1, columns[:, :k])
    indices.copy_(numbers.masked_fill(first == float("-inf"), -1))
    undecided, tied = (first - slack).to(best.dtype) != best, near[:, :k].any(1)
    rows, places = (undecided & ~tied[:, None]).nonzero(as_tuple=True)
    (at,) = tied.nonzero(as_tuple=True)
    return [_Open(rows, places, _TiedRows(at, found[at], columns[at], apart[at]) if len(at) else None)]


def _settle(given: RowsOfScores, tied: _TiedRows, best: Tensor, indices: Tensor) -> None:
    """Write rows with near ties: those are canonical, elsewhere the canonical scores stand in the same order."""
    k, scores, columns, slack = best.shape[1], tied.best, tied.columns, given.slack[tied.rows, None]
    items = columns if given.indices is None else given.indices[tied.rows].gather(1, columns)
    near = scores[:, :-1] - scores[:, 1:] <= tied.apart
    # beyond the k-th place only those count that a chain of near ties connects with it
    near[:, k - 1 :] &= near[:, k - 1 :].long().cummin(dim=1).values.bool()
    undecided = torch.zeros_like(scores, dtype=torch.bool)
    undecided[:, :k] = (scores[:, :k] - slack).to(best.dtype) != (scores[:, :k] + slack).to(best.dtype)
    undecided[:, :-1] |= near
    undecided[:, 1:] |= near
    rows, places = undecided.nonzero(as_tuple=True)
    scores[rows, places] = given.canonical(tied.rows[rows], items[rows, places])
    by_index, order = items.sort(dim=1)
    sorted_scores, by_score = scores.gather(1, order).sort(dim=1, descending=True, stable=True)
    best[tied.rows] = sorted_scores[:, :k].to(best.dtype)
    numbers = by_index.gather(1, by_score)[:, :k]
    indices[tied.rows] = numbers.masked_fill(sorted_scores[:, :k] == float("-inf"), -1)


def _unsure(slack: Slack, grain: float, dim: int) -> Slack:
    """Half of how close two scores may be and yet stand in the wrong order."""
    return slack * (1 + 2.1 * grain / (dim + 8))  # the slack holds (dim + 8) · 2⁻⁵³ of the largest that a score can be
