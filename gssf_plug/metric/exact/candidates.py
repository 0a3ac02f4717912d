r"""Which gallery items may still be among the k best of each query, while the gallery passes by in parts.

A fast score with its bound says that the canonical score lies in [low, high]. The k-th best `low` of a query so far is
a threshold: an item whose `high` stays below it cannot be among the k best, whatever rounding did. So most scores cost
one look in a short dtype; the pairs that it leaves open are looked at more closely, one by one, so that thresholds are
nearly the true k-th best scores; and what is then left, hardly more than is asked for, is decided afterwards.
"""

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from gssf_plug.metric.exact.falling import largest
from gssf_plug.metric.exact.fast_scores import FastQueries
from gssf_plug.metric.exact.first_look import FirstLook, Found, Look, Part
from gssf_plug.metric.exact.reaching import places

__all__ = ["Candidates", "pad_pairs"]

MOST_UNDECIDED = 16  # candidates, times k
FEW_PAIRS = 1024  # cost less to keep than to drop


class Candidates:
    """The candidates of some queries.

    Args:
        close: their side of the product that decides most pairs.
        k: number of items that are asked for.
        first: first look at all pairs, before the closer one.
    """

    def __init__(self, close: FastQueries, k: int, first: FirstLook) -> None:
        self.close, self.k, self.first = close, k, first
        device = close.rows.device
        self.least = torch.full((len(close.rows),), float("-inf"), dtype=torch.float64, device=device)
        self.rows = torch.empty(0, dtype=torch.long, device=device)
        self.columns = self.rows.clone()
        self.low = torch.empty(0, dtype=torch.float64, device=device)
        self.high = self.low.clone()
        self.guessed: Tensor | None = None
        self._best = self.low.new_empty(len(close.rows), 0)  # the k best `low` of each query so far, in any order
        self._parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self._seen = 0  # of the parts, in `_best`
        self._waiting = 0  # pairs of the others

    def __len__(self) -> int:
        return len(self.rows) + sum(len(part[0]) for part in self._parts)

    def add(self, part: Part, start: int, hidden: Bool[Tensor, "n m"] | None) -> None:
        """A part of the gallery whose first item has the number `start`; `hidden` pairs are no candidates."""
        if not len(self) and self.guessed is None:  # nothing to compare scores with yet
            found, least = self.first.begin(part, hidden, self.k)
            self.least = torch.maximum(self.least, least)
        else:
            found = self.first.at_most(part, hidden, self.least)
        self._keep(found, part, start)

    def guess(self, least: Float[Tensor, " n"] | None) -> None:
        """Start from scores that k items are expected to reach, if they are known; `missed` says where in vain."""
        if least is not None:
            self.guessed = self.least = least

    def missed(self) -> Int[Tensor, " missed"]:
        """Queries whose guess was too high: what is kept for them is not enough."""
        if self.guessed is None:
            return self.rows[:0]
        if self._best.shape[1] < self.k:
            return (self.guessed > float("-inf")).nonzero()[:, 0]
        return (self._best.amin(1) < self.guessed).nonzero()[:, 0]

    def _keep(self, found: Found, part: Part, start: int) -> None:
        """Take the pairs of a look that may be among the best; where they are few, after a closer look."""
        look, at = found
        rows = at.div(look.scores.shape[1], rounding_mode="floor")
        columns = at - rows * look.scores.shape[1]
        if isinstance(look, Look) and (look.fast is self.close or not look.leaves_little(at)):
            values = look.scores.flatten().index_select(0, at)
            low, high = look.fast.between(values, look.fast.margins(look.items).index_select(0, rows), look.items)
        else:
            values = self.close.pairs(rows, part.rows, columns)
            margins = self.close.margins(part.rows, of_pairs=True)
            low, high = self.close.between(values, margins.index_select(0, rows), part.rows)
            kept = places(high >= self.least.index_select(0, rows))
            rows, columns, low, high = (each.index_select(0, kept) for each in (rows, columns, low, high))
        self._parts.append((rows, columns.add_(start), low, high))
        self._waiting += len(rows)
        if self._waiting * 4 > max(len(self.least) * self.k, FEW_PAIRS):
            self._raise()

    def _raise(self) -> None:
        """Raise the threshold to what is known by now."""
        new = self._parts[self._seen :]
        lows = [pad_pairs(len(self.least), rows, low)[0] for rows, _, low, _ in new]
        best = torch.cat([self._best, *lows], dim=1)
        if best.shape[1] > self.k:
            best = largest(best, self.k)
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

    def too_many(self, besides: int = 0) -> bool:
        """Whether more stay than are worth a closer look one by one; `besides` so many of one part."""
        most = MOST_UNDECIDED * self.k * len(self.least) + besides
        if len(self) > most:
            self.prune()
        return len(self) > most

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
