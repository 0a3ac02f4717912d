"""Scores that somebody else made."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gssf_plug.evaluation.options import finite_scores
from gssf_plug.evaluation.scores.protocols import ALL
from gssf_plug.metric.exact.fast_scores import Open

__all__ = ["GivenScores"]


class GivenScores:
    """A matrix of scores that somebody else made: exact as it is.

    Args:
        matrix: N×M.
    """

    def __init__(self, matrix: Float[Tensor, "n m"]) -> None:
        self.matrix, self.parts, self.rows_together = matrix, [slice(0, matrix.shape[1])], 1

    def canonical(self, rows: Int[Tensor, " pairs"], columns: Int[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
        """The given scores."""
        return self.matrix[rows, columns].double()

    def of(self, rows: slice) -> "_GivenQueries":
        """Some of the queries."""
        return _GivenQueries(self.matrix[rows])


class _GivenQueries:
    def __init__(self, matrix: Tensor) -> None:
        self.matrix, self.parts = matrix, [slice(0, matrix.shape[1])]
        self.slack, self.has_table = matrix.new_zeros(len(matrix), dtype=torch.float64), True
        self.wants_table = False

    def sampled(self, columns: slice, rows: slice, step: int) -> None:
        return None

    def side_by_side(self, columns: slice) -> int:
        return 1

    def part(self, columns: slice, rows: slice = ALL, *, finest: bool = False) -> "_GivenPart":
        return _GivenPart(self.matrix[rows, columns])

    def look_closer(self) -> bool:
        return False

    def pairs(self, part: slice, rows: Tensor, columns: Tensor) -> Open:
        values = self.close(rows, columns + part.start)
        return Open(values, values)

    def close(self, rows: Tensor, columns: Tensor) -> Tensor:
        return self.matrix[rows, columns].double()

    canonical = close

    def table(self, columns: slice, rows: slice = ALL) -> Tensor:
        return self.matrix[rows, columns].to(torch.float64, copy=True)


class _GivenPart:
    def __init__(self, matrix: Tensor) -> None:
        self.can_be_finer, self.can_be_closer, self.fast = False, False, finite_scores(matrix.clone())

    def around(self, low: Tensor, high: Tensor) -> Open:
        return Open(low.to(self.fast), high.to(self.fast))

    around_items = around

    def between(self, rows: Tensor, fast: Tensor) -> Open:
        return Open(fast.double(), fast.double())
