r"""Which gallery items may still be among the k best of each query, while the gallery passes by in parts.

A fast score with its bound says that the canonical score lies in [low, high]. The k-th best `low` of a query so far is
a threshold: an item whose `high` stays below it cannot be among the k best, whatever rounding did. So most scores cost
one look; what is left, some 1.4 items for each that is asked for, is decided afterwards.
"""

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from gssf_plug.metric.exact.fast_scores import FastQueries, FastRows
from gssf_plug.metric.exact.reaching import group_peaks, places, reaching

__all__ = ["Candidates", "pad_pairs"]

FEW_SCORES = 65_536  # cost less to compare than to group
FEW_PAIRS = 1024  # cost less to keep than to drop
LOOKED_AT = 8  # scores in a group whose largest bounds the k-th best of a first part from below


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
        self._best = self.low.new_empty(len(fast.rows), 0)  # the k best `low` of each query so far, in any order
        self._parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self._seen = 0  # of the parts, in `_best`
        self._waiting = 0  # pairs of the others

    def __len__(self) -> int:
        return len(self.rows) + sum(len(part[0]) for part in self._parts)

    def add(self, items: FastRows, start: int, hidden: Bool[Tensor, "n m"] | None) -> None:
        """A part of the gallery whose first item has the number `start`; `hidden` pairs are no candidates."""
        scores = self.fast.product(items)
        if hidden is not None:
            scores.masked_fill_(hidden, float("-inf"))
        margins = self.fast.margins(items)
        if not len(self) and self.k <= scores.shape[1]:  # nothing to compare with yet
            looked_at = group_peaks(scores, LOOKED_AT)  # where k is far below their number, nearly as good as all
            looked_at = looked_at if self.k * 4 <= looked_at.shape[1] else scores
            best = looked_at.topk(self.k, dim=1, sorted=False).values.amin(1)
            self.least = torch.maximum(self.least, self.fast.between(best, margins, items).low)
        peaks = group_peaks(scores) if scores.numel() > FEW_SCORES else None
        at = reaching(scores, self.fast.around(self.least, items).low, peaks)
        values = scores.flatten().index_select(0, at)
        finite = values > float("-inf")
        if hidden is not None and not bool(finite.all()):
            at, values = at[finite], values[finite]
        rows = at.div(scores.shape[1], rounding_mode="floor")
        low, high = self.fast.between(values, margins.index_select(0, rows), items)
        self._parts.append((rows, at.sub_(rows * scores.shape[1]).add_(start), low, high))
        self._waiting += len(rows)
        if self._waiting * 2 > max(len(self.least) * self.k, FEW_PAIRS):
            self._raise()

    def _raise(self) -> None:
        """Raise the threshold to what is known by now."""
        new = self._parts[self._seen :]
        lows = [pad_pairs(len(self.least), rows, low)[0] for rows, _, low, _ in new]
        best = torch.cat([self._best, *lows], dim=1)
        if best.shape[1] > self.k:
            best = best.topk(self.k, dim=1, sorted=False).values
        if best.shape[1] == self.k:
            self.least = torch.maximum(self.least, best.amin(1))
        self._best, self._seen, self._waiting = best, len(self._parts), 0

    def prune(self) -> None:
        """Raise the threshold, and drop what it excludes."""
        self._raise()
        parts = [(self.rows, self.columns, self.low, self.high), *self._parts]
        rows, columns, low, high = (torch.cat(each) for each in zip(*parts, strict=True))
        kept = places(high >= self.least.index_select(0, rows))
        rows, columns, low, high = (each.index_select(0, kept) for each in (rows, columns, low, high))
        rows, order = rows.sort(stable=True)  # the parts came in order of column, and so it stays within a row
        self.rows, self.columns, self.low, self.high = rows, columns[order], low[order], high[order]
        self._parts, self._seen = [], 0

    def settle(self, scores: Float[Tensor, " pairs"]) -> None:
        """Take canonical scores for the present candidates; keep the k best of each query, ties by lower column."""
        padded, columns = pad_pairs(len(self.least), self.rows, scores, self.columns)
        padded, order = padded.sort(dim=1, descending=True, stable=True)
        self._best = padded[:, : self.k]
        chosen = padded[:, : self.k] > float("-inf")
        rows = chosen.nonzero()[:, 0]
        columns = columns.gather(1, order[:, : self.k])[chosen]
        values = padded[:, : self.k][chosen]
        by_column = columns.argsort(stable=True)
        by_row = by_column[rows[by_column].argsort(stable=True)]
        self.rows, self.columns = rows[by_row], columns[by_row]
        self.low, self.high = values[by_row], values[by_row]


def pad_pairs(count: int, rows: Int[Tensor, " pairs"], *values: Shaped[Tensor, " pairs"]) -> list[Tensor]:
    """Values of pairs in order of row as matrices of `count` rows; floats padded with -inf, whole numbers with -1."""
    counts = torch.bincount(rows, minlength=count)
    width = int(counts.max()) if count else 0
    # where a pair stands: its place in its row is its number less the number of pairs in rows before
    row_starts = torch.arange(0, count * width, width, device=rows.device) if width else counts
    shift = row_starts - (counts.cumsum(0) - counts)
    places = torch.arange(len(rows), device=rows.device).add_(shift.index_select(0, rows))
    padded = []
    for each in values:
        matrix = each.new_full((count * width,), float("-inf") if each.is_floating_point() else -1)
        padded.append(matrix.index_copy_(0, places, each).view(count, width))
    return padded
