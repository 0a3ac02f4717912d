r"""Which gallery items may still be among the k best of each query, while the gallery passes by in parts.

A fast score with its bound says that the canonical score lies in [low, high]. The k-th best `low` of a query so far is
a threshold: an item whose `high` stays below it cannot be among the k best, whatever rounding did. So most scores cost
one look; what is left, some 1.4 items for each that is asked for, is decided afterwards.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gssf_plug.metric.exact.fast_scores import FastQueries, FastRows

__all__ = ["Candidates", "pad_pairs"]

GROUP = 64  # scores whose largest is looked at first
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class Candidates:
    """The candidates of some queries.

    Args:
        fast: their side of the fast product.
        k: how many are asked for.
    """

    def __init__(self, fast: FastQueries, k: int) -> None:
        self.fast, self.k = fast, k
        device = fast.rows.device
        self.least = torch.full((len(fast.rows),), float("-inf"), dtype=torch.float64, device=device)
        self.rows = torch.empty(0, dtype=torch.long, device=device)
        self.columns = self.rows.clone()
        self.low = torch.empty(0, dtype=torch.float64, device=device)
        self.high = self.low.clone()
        self._new: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self._most = len(fast.rows) * k

    def __len__(self) -> int:
        return len(self.rows) + sum(len(new[0]) for new in self._new)

    def add(self, items: FastRows, start: int, hidden: Bool[Tensor, "n m"] | None) -> None:
        """A part of the gallery whose first item has the number `start`; `hidden` pairs are no candidates."""
        scores = self.fast.product(items)
        if hidden is not None:
            scores.masked_fill_(hidden, float("-inf"))
        margins = self.fast.margins(items)
        if not len(self) and self.k <= scores.shape[1]:  # nothing to compare with yet
            best = scores.topk(self.k, dim=1).values[:, -1]
            self.least = torch.maximum(self.least, self.fast.between(best, margins, items).low)
        rows, columns = _reaching(scores, self.fast.around(self.least, items).low)
        values = scores[rows, columns]
        finite = values > float("-inf")
        if hidden is not None and not bool(finite.all()):
            rows, columns, values = rows[finite], columns[finite], values[finite]
        low, high = self.fast.between(values, margins[rows], items)
        self._new.append((rows, columns + start, low, high))
        if sum(len(new[0]) for new in self._new) > self._most:
            self.prune()

    def prune(self) -> None:
        """Raise the threshold to what is known by now, and drop what it excludes."""
        parts = [(self.rows, self.columns, self.low, self.high), *self._new]
        rows, columns, low, high = (torch.cat(each) for each in zip(*parts, strict=True))
        rows, order = rows.sort(stable=True)  # the parts came in order of column, and so it stays within a row
        columns, low, high = columns[order], low[order], high[order]
        lows, _ = pad_pairs(len(self.least), rows, columns, low)
        if lows.shape[1] >= self.k:
            self.least = torch.maximum(self.least, lows.topk(self.k, dim=1).values[:, -1])
        kept = high >= self.least[rows]
        self.rows, self.columns, self.low, self.high = (each[kept] for each in (rows, columns, low, high))
        self._new = []

    def settle(self, scores: Float[Tensor, " pairs"]) -> None:
        """Take canonical scores for the present candidates; keep the k best of each query, ties by lower column."""
        padded, columns = pad_pairs(len(self.least), self.rows, self.columns, scores)
        padded, order = padded.sort(dim=1, descending=True, stable=True)
        chosen = padded[:, : self.k] > float("-inf")
        rows = chosen.nonzero()[:, 0]
        columns = columns.gather(1, order[:, : self.k])[chosen]
        values = padded[:, : self.k][chosen]
        by_column = columns.argsort(stable=True)
        by_row = by_column[rows[by_column].argsort(stable=True)]
        self.rows, self.columns = rows[by_row], columns[by_row]
        self.low, self.high = values[by_row], values[by_row]


def _reaching(scores: Float[Tensor, "n m"], threshold: Float[Tensor, " n"]) -> tuple[Tensor, Tensor]:
    """Row and column of every score that is at least its row's threshold, in order."""
    count, width = scores.shape
    if width % GROUP or not scores.is_contiguous() or not bool((threshold > 0).all()):
        rows, columns = (scores >= threshold[:, None]).nonzero(as_tuple=True)
        return rows, columns
    groups = scores.view(count, -1, GROUP)
    # above zero, floating-point numbers stand in the order of their bits; comparing integers is several times faster
    integer = INTEGERS[scores.dtype.itemsize]
    peaks = groups.view(integer).amax(dim=2)
    rows, group = (peaks >= threshold.view(integer)[:, None]).nonzero(as_tuple=True)
    hits, place = (groups[rows, group] >= threshold[rows][:, None]).nonzero(as_tuple=True)
    return rows[hits], group[hits] * GROUP + place


def pad_pairs(
    count: int, rows: Int[Tensor, " pairs"], columns: Int[Tensor, " pairs"], values: Float[Tensor, " pairs"]
) -> tuple[Float[Tensor, "n _"], Int[Tensor, "n _"]]:
    """Pairs in order of row as matrices of `count` rows: values padded with -inf, and their columns with -1."""
    counts = torch.bincount(rows, minlength=count)
    # the place of a pair in its row: its number less the number of pairs in rows before
    places = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
    width = int(counts.max()) if count else 0
    padded = values.new_full((count, width), float("-inf"))
    indices = torch.full_like(padded, -1, dtype=torch.long)
    padded[rows, places], indices[rows, places] = values, columns
    return padded, indices
