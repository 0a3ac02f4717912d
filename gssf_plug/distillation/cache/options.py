"""What a cache is made of, checked before the teacher runs."""

from collections.abc import Mapping
from typing import Any

from gssf_plug.arguments import described, has_rows, listed
from gssf_plug.distillation.taps import Tap
from gssf_plug.errors import ArgumentError, near_matches

__all__ = ["check_dataset", "checked_columns", "checked_taps"]


def checked_taps(taps: Any) -> list[Tap]:
    """Taps as a list of at least one.

    Raises:
        ArgumentError: there is none, or something else among them.
    """
    given = listed(taps.values() if isinstance(taps, Mapping) else taps)
    if not given or not all(isinstance(tap, Tap) for tap in given):
        strange = [described(tap) for tap in given or () if not isinstance(tap, Tap)]
        got = described(taps) if given is None else strange[0] if strange else "none"
        remedy = 'Such as {"pooled": Tap("", pooling=mean_pool)}.'
        raise ArgumentError("taps", "be a list of Taps, or Taps by name, at least one", got, remedy)
    return list(given)


def check_dataset(dataset: Any) -> None:
    """A data set that is read by number, with rows that are mappings.

    Raises:
        ArgumentError: it is something else, or empty.
    """
    if not has_rows(dataset):
        rule, remedy = "be a data set with a length and rows by number", "Take one split, or collect a stream first."
        raise ArgumentError("dataset", rule, described(dataset), remedy)
    if len(dataset) == 0:
        raise ArgumentError("dataset", "hold at least one example", "none", "Give the training data.")
    if not isinstance(dataset[0], Mapping):
        rule, remedy = "have rows that are mappings from columns to values", "Such as a datasets.Dataset."
        raise ArgumentError("dataset", rule, described(dataset[0]), remedy)


def checked_columns(columns: Any, first: Mapping[str, Any]) -> list[str]:
    """The columns that make an example, sorted; None takes all of the first row.

    Raises:
        ArgumentError: there is none, or one that the first row lacks.
    """
    given = listed(columns if columns is not None else first)
    if given is None or not all(isinstance(name, str) for name in given):
        rule = "be None or a list of names of columns"
        raise ArgumentError("columns", rule, described(columns), "Name the teacher's.")
    chosen = sorted(given)
    absent = [name for name in chosen if name not in first]
    if absent:
        remedy = near_matches(absent[0], map(str, first))
        raise ArgumentError("columns", "be columns of the data set", repr(absent[0]), remedy)
    if not chosen:
        raise ArgumentError(
            "columns", "name at least one column, by which examples are told apart", "none", "Name the teacher's."
        )
    return chosen
