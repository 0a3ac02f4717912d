"""The numbers that vector stores return for a query f and an item g, and the score f·g from each of them.

f·g, −f·g, 1−f·g           inner products, as they are or as a distance
cos, 1−cos                 cos = f·g / (|f| |g|): the length of the query is lost
L2, squared L2             |f − g|² = |f|² + |g|² − 2 f·g
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

__all__ = ["FORMS", "NumberForm", "fitting_forms"]

Numbers = Float[np.ndarray, " pairs"]
ACCEPTED_ERROR = 0.05  # of the form's own unit: beyond what 8-bit codes lose, below what tells two forms apart


@dataclass(frozen=True)
class NumberForm:
    """One form of number.

    Args:
        name: formula by which the form is written.
        larger_first: True where the largest number belongs to the best item.
        from_score: function from the score f·g and the lengths |f| and |g| to the number.
        to_score: function from the number and the lengths to the score.
        unit: function from the lengths to the unit in which an error of the number is measured.
        needs_lengths: True where the score depends on |g|.
    """

    name: str
    larger_first: bool
    from_score: Callable[[Numbers, Numbers, Numbers], Numbers]
    to_score: Callable[[Numbers, Numbers, Numbers], Numbers]
    unit: Callable[[Numbers, Numbers], Numbers]
    needs_lengths: bool = False


def _product(f: Numbers, g: Numbers) -> Numbers:
    return f * g


def _one(f: Numbers, g: Numbers) -> Numbers:
    return np.ones_like(f)


FORMS = (
    NumberForm("f·g", True, lambda s, f, g: s, lambda v, f, g: v, _product),
    NumberForm("−f·g", False, lambda s, f, g: -s, lambda v, f, g: -v, _product),
    NumberForm("1−f·g", False, lambda s, f, g: 1 - s, lambda v, f, g: 1 - v, _product),
    NumberForm("cos", True, lambda s, f, g: s / (f * g), lambda v, f, g: v * f * g, _one, True),
    NumberForm("1−cos", False, lambda s, f, g: 1 - s / (f * g), lambda v, f, g: (1 - v) * f * g, _one, True),
    NumberForm(
        "L2",
        False,
        lambda s, f, g: np.sqrt(np.maximum(f**2 + g**2 - 2 * s, 0)),  # rounding may fall below 0 where f = g
        lambda v, f, g: (f**2 + g**2 - v**2) / 2,
        lambda f, g: f + g,
        True,
    ),
    NumberForm(
        "squared L2",
        False,
        lambda s, f, g: f**2 + g**2 - 2 * s,
        lambda v, f, g: (f**2 + g**2 - v) / 2,
        lambda f, g: (f + g) ** 2,
        True,
    ),
)


def fitting_forms(numbers: Numbers, scores: Numbers, f: Numbers, g: Numbers) -> dict[str, float]:
    """The forms that these numbers can have, the nearest first, each with its error.

    Args:
        numbers: numbers that the store returned for some pairs.
        scores: scores f·g of the same pairs.
        f: length of each pair's query, above 0.
        g: length of each pair's item, above 0.

    Returns:
        For each form that fits, by name, the root mean square error in its unit (|f| |g| for inner products, 1 for
        cosines, |f| + |g| for lengths). A form fits where its error is at most 0.05 and at most twice the nearest
        form's: unit queries, for instance, have f·g = cos. Empty where none fits.
    """
    if not len(numbers):
        return {}
    errors = {
        form.name: float(np.sqrt(np.mean(((numbers - form.from_score(scores, f, g)) / form.unit(f, g)) ** 2)))
        for form in FORMS
    }
    nearest = min(errors.values())
    limit = min(ACCEPTED_ERROR, max(2 * nearest, 1e-4))  # below 1e-4 all is rounding of float32
    return {name: error for name, error in sorted(errors.items(), key=lambda item: item[1]) if error <= limit}
