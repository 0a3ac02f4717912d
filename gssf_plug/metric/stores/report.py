"""What was found out about a store, with advice, and the metric's scores from the store's numbers."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from gssf_plug.arguments import described, is_dense
from gssf_plug.errors import ArgumentError
from gssf_plug.metric.arrays import Array, check_has_values, to_tensor
from gssf_plug.metric.stores.number_forms import FORMS

__all__ = ["Answer", "StoreReport"]

ENOUGH = 0.99  # recall below which the report advises


@dataclass(frozen=True)
class Answer:
    """What the store answered to one set of queries.

    Args:
        recall: share of the k best items, by score, that the store found; 0 … 1.
        ordered: share of the queries whose items came best first; 0 … 1.
        forms: forms that the numbers can have, the nearest first, with their errors (see `fitting_forms`).
        direction: order of the numbers themselves: "larger first", "smaller first" or "not sorted".
        largest_error: largest error of a number of the nearest form, in the number's own unit; NaN without a form.
        missing: number of the N·k places that held no item: rows that ended early, ids outside 0 … M−1, numbers of NaN.
    """

    recall: float
    ordered: float
    forms: dict[str, float]
    direction: str
    largest_error: float
    missing: int


@dataclass(frozen=True)
class StoreReport:
    """What `check_store` found. `print(report)` shows it with advice.

    Args:
        k: number of items that were asked for.
        recall: share of `topk`'s items that the store found, 0 … 1; an item of equal score counts.
        ordered: share of the queries whose items came best first; 0 … 1.
        form: form of the numbers: "f·g", "−f·g", "1−f·g", "cos", "1−cos", "L2" or "squared L2"; None where they are
            none of these.
        direction: order of the numbers: "larger first", "smaller first" or "not sorted".
        largest_error: largest difference between a number and its form; NaN without a form.
        scaled: what the store did with queries of 0.05 and 50 times the length, by that factor.
        padding: what comes where more items are asked for than there are.
        missing: number of the N·k places that held no item.
        item_length: length of the gallery items where it is the same for all (1 with `normalize=True`), else None.
    """

    k: int
    recall: float
    ordered: float
    form: str | None
    direction: str
    largest_error: float
    scaled: dict[float, Answer]
    padding: str
    missing: int
    item_length: float | None

    @property
    def moves(self) -> list[str]:
        """What changes with the length of the query, in words; empty for a store that is right for all."""
        found = []
        for scale, answer in self.scaled.items():
            if abs(answer.recall - self.recall) > 0.01:
                found.append(f"recall is {answer.recall:.3f} where |f| is {scale:g} times as large")
            if (self.form or "none") not in (answer.forms or {"none": 0.0}):
                found.append(
                    f"the number is {next(iter(answer.forms), 'of no form')} where |f| is {scale:g} times as large"
                )
        return found

    def scores(
        self,
        numbers: Float[Array, "*queries k"],
        folded: Float[Array, "*queries dim"],
        item_lengths: Float[Array, "*queries k"] | None = None,
    ) -> Float[np.ndarray, "*queries k"]:
        """The metric's scores f·g from the store's numbers.

        Args:
            numbers: numbers of the store, (N, k), or one row (k,) for one query.
            folded: folded queries, (N, D), or one (D,).
            item_lengths: length of each of the N×k items, which cosines and distances need where items differ in it, as
                they do with `normalize=False`. Default: the one length that the report knows.

        Returns:
            The scores in float64, in the shape of `numbers`; larger is better. They are rounded as the store's numbers
            are.

        Raises:
            ArgumentError: the numbers have no known form, the lengths of the items are needed and missing, or an
                argument is no table of real numbers or has another shape.
        """
        form = next((form for form in FORMS if form.name == self.form), None)
        if form is None:
            remedy = "Score the ids that it found with the metric: metric.pairwise(query, item)."
            raise ArgumentError("numbers", "be of a known form", "those of a store whose form is none", remedy)
        values, rows = _real("numbers", numbers), _real("folded", folded)
        lengths = np.linalg.norm(rows, axis=-1)
        lengths = lengths.reshape(lengths.shape + (1,) * (values.ndim - lengths.ndim))
        if item_lengths is not None:
            items = _real("item_lengths", item_lengths)
        elif self.item_length is not None or not form.needs_lengths:
            items = np.full(values.shape, 1.0 if self.item_length is None else self.item_length)
        else:
            remedy = "Pass the length of each item that was found."
            raise ArgumentError(
                "item_lengths", f"be given for {form.name} of items of different lengths", "None", remedy
            )
        of_queries = _spread("folded", lengths, values.shape, f"shape {rows.shape}", "one row for each row")
        of_items = _spread("item_lengths", items, values.shape, f"shape {items.shape}", "one length for each")
        return form.to_score(values, of_queries, of_items)

    def advice(self) -> list[str]:
        """What to do about what was found, one sentence each; empty where nothing needs doing."""
        said = []
        if self.recall < ENOUGH:
            said.append("Raise the index's search effort (ef, nprobe, search_k), or search without a graph or cells.")
        if self.ordered < ENOUGH:
            said.append(
                "Items do not come best first: sort them by `report.scores`, or ask with -f where the worst come."
            )
        if any("recall" in word for word in self.moves):
            said.append("The query's length decides what is found: quantise the items, not the query.")
        if self.form is None:
            said.append("The number is none that is known: re-score the items that were found with the metric.")
        if self.form in ("cos", "1−cos", "L2", "squared L2"):
            said.append("Numbers of two queries do not compare: use `report.scores`, or the store's inner product.")
        if self.form == "1−f·g":
            said.append(
                "Thresholds on 1 − number are thresholds on the score; relevance functions that expect 0 … 1 are not."
            )
        return said

    def __str__(self) -> str:
        """A few lines: found, number, length of the query, padding, advice."""
        direction = self.direction
        error = "" if self.form is None else f", largest error {self.largest_error:.1e}"
        lines = [
            f"found     {self.recall:.3f} of the {self.k} best; best first in {self.ordered:.3f} of the queries"
            + (f"; {self.missing} places without an item" if self.missing else ""),
            f"number    {self.form or 'of no known form'}, {direction}{error}",
            f"length    {'; '.join(self.moves) or 'recall and form are the same for 0.05 and 50 times |f|'}",
            f"k > n     {self.padding}",
        ]
        return "\n".join([*lines, *(f"advice    {sentence}" for sentence in self.advice())])


def _real(name: str, value: object) -> np.ndarray:
    """A row or table of real numbers, in float64."""
    tensor = to_tensor(name, value)
    check_has_values(name, tensor)
    if not is_dense(tensor) or tensor.is_complex() or not tensor.ndim:
        rule = "be a row or table of real numbers, densely stored"
        raise ArgumentError(name, rule, described(tensor), "Convert it first.")
    return tensor.detach().cpu().double().numpy()


def _spread(name: str, values: np.ndarray, shape: tuple[int, ...], got: str, rule: str) -> np.ndarray:
    """`values`, one for each number of the store."""
    try:
        return np.broadcast_to(values, shape)
    except ValueError:
        remedy = "Give those of the queries and items that the numbers are of."
        raise ArgumentError(name, f"have {rule} of `numbers`, of shape {shape}", got, remedy) from None
