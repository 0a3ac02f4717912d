r"""What ranks are counted from: fast scores of all pairs, and a closer look at the few that the fast ones leave open.

Four looks, each with a bound on how far it is from the canonical score (`gssf_plug.metric.exact.canonical`): a result
depends on no chunk, thread, process or device.

    fast        one product in a short dtype; open within 10⁻⁵ (float32), 10⁻⁴ (two digits in int8) or 10⁻³ (bfloat16)
    pairs       after a shorter product than float32's, that of single pairs; open within about 10⁻⁵
    close       float64 products of single pairs; open within about 10⁻¹³, which is to say at ties
    canonical   correctly rounded, one value for two rows; equal means tied

Where a chunk leaves much open (features that hardly differ), a float64 product takes the place of the fast one.
"""

from typing import Protocol

from jaxtyping import Float, Int, Shaped
from torch import Tensor

from gssf_plug.metric.exact.fast_scores import Open

__all__ = ["ALL", "ScoredPart", "ScoredQueries", "Scores"]

ALL = slice(None)


class ScoredPart(Protocol):
    """Some queries against a part of the gallery.

    Whole numbers may stand for `fast` scores. They can be finer by a product of all pairs in float64, and closer by
    float32 products of single pairs.
    """

    fast: Shaped[Tensor, "n m"]
    can_be_finer: bool
    can_be_closer: bool

    def around(self, low: Float[Tensor, "n k"], high: Float[Tensor, "n k"]) -> Open:
        """Fast scores below `low` of the result are certainly below `low`, those above its `high` above `high`."""
        ...

    def between(self, rows: Int[Tensor, " pairs"], fast: Shaped[Tensor, " pairs"]) -> Open | None:
        """Between what canonical scores lie; None where that tells little more than `around`."""
        ...

    def around_items(self, low: Float[Tensor, " m"], high: Float[Tensor, " m"]) -> Open:
        """The same for one value per item, whichever query is compared with it."""
        ...


class ScoredQueries(Protocol):
    """Some queries against the whole gallery."""

    slack: Float[Tensor, " n"]
    parts: list[slice]

    def sampled(self, columns: slice, rows: slice, step: int) -> ScoredPart | None:
        """Some of them with one item in so many, where a short dtype is still to be tried by that; None elsewhere."""
        ...

    def side_by_side(self, columns: slice) -> int:
        """How many threads may ask at once for parts of some of the gallery, which is made ready for them."""
        ...

    def part(self, columns: slice, rows: slice = ALL, *, finest: bool = False) -> ScoredPart:
        """Fast scores of all or some of them with a part of the gallery, which may be changed in place.

        `finest` asks for a float64 product.
        """
        ...

    def pairs(self, part: slice, rows: Int[Tensor, " pairs"], columns: Int[Tensor, " pairs"]) -> Open:
        """Between what the canonical scores of some pairs lie by float32 products; `columns` count within the part."""
        ...

    def close(self, rows: Int[Tensor, " pairs"], columns: Int[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
        """Scores in float64, within `slack` of their row from the canonical ones."""
        ...

    def canonical(self, rows: Int[Tensor, " pairs"], columns: Int[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
        """Canonical scores; equal means tied."""
        ...

    def look_closer(self) -> bool:
        """Multiply in float32 from the next part on; False where fast scores were no shorter before."""
        ...

    @property
    def has_table(self) -> bool:
        """Whether canonical scores of all pairs are to be had at once."""
        ...

    @property
    def wants_table(self) -> bool:
        """Whether they were asked for before: features of few values tie everywhere."""
        ...

    def table(self, columns: slice, rows: slice = ALL) -> Float[Tensor, "n m"]:
        """Those of some of them with a part of the gallery, which may be changed in place."""
        ...


class Scores(Protocol):
    """All queries against the whole gallery; `rows_together` of them may be asked for at once."""

    parts: list[slice]
    rows_together: int

    def of(self, rows: slice) -> ScoredQueries:
        """Some of the queries."""
        ...

    def canonical(self, rows: Int[Tensor, " pairs"], columns: Int[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
        """Canonical scores; equal means tied."""
        ...
