"""check_store: does a vector store find what exact search finds, and what is the number that it returns?

Stores differ where the query is no unit vector, as a folded one is: most return 1−f·g, −f·g, a cosine or a distance,
some list the worst item first, and where the query is quantised its length decides what is found. So the store is
asked: as it will be, and with queries of a twentieth and of fifty times their length, which change no order.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from gssf_plug.errors import ArgumentError
from gssf_plug.metric.arrays import Array, to_tensor
from gssf_plug.metric.metric import GSSFMetric
from gssf_plug.metric.search import topk
from gssf_plug.metric.stores.number_forms import FORMS, fitting_forms

__all__ = ["Search", "StoreReport", "check_store"]

Search = Callable[[np.ndarray, int], tuple[Any, Any]]
SCALES = (0.05, 50.0)
PADDING_ASKED_UP_TO = 4096  # items; some stores limit k, and a larger one costs more than the answer is worth
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
            ArgumentError: the numbers have no known form, or the lengths of the items are needed and missing.
        """
        form = next((form for form in FORMS if form.name == self.form), None)
        if form is None:
            remedy = "Score the ids that it found with the metric: metric.pairwise(query, item)."
            raise ArgumentError("numbers", "be of a known form", "those of a store whose form is none", remedy)
        values = np.asarray(to_tensor("numbers", numbers), dtype=np.float64)
        lengths = np.linalg.norm(np.asarray(to_tensor("folded", folded), dtype=np.float64), axis=-1)
        lengths = lengths.reshape(lengths.shape + (1,) * (values.ndim - lengths.ndim))
        if item_lengths is not None:
            items = np.asarray(to_tensor("item_lengths", item_lengths), dtype=np.float64)
        elif self.item_length is not None or not form.needs_lengths:
            items = np.full(values.shape, 1.0 if self.item_length is None else self.item_length)
        else:
            remedy = "Pass the length of each item that was found."
            raise ArgumentError(
                "item_lengths", f"be given for {form.name} of items of different lengths", "None", remedy
            )
        return form.to_score(values, np.broadcast_to(lengths, values.shape), np.broadcast_to(items, values.shape))

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


@torch.no_grad()
def check_store(
    search: Search,
    metric: GSSFMetric,
    queries: Float[Array, "n dim"],
    gallery: Float[Array, "m dim"],
    k: int = 10,
) -> StoreReport:
    """Ask a store that holds `metric.gallery(gallery)` and compare its answers with exact search.

    Args:
        search: your own function `search(folded, k) -> (numbers, ids)`. `folded` is a float32 numpy array (N, D) of
            folded queries; `numbers` and `ids` are N rows of at most k, arrays or lists, in the store's own order. An
            id is the item's row in `gallery`; -1 marks an empty place.
        metric: metric whose gallery side the store holds.
        queries: features of the queries, (N, D), not yet folded, numpy or torch; fifty are enough.
        gallery: features (M, D) whose `metric.gallery(...)` the store holds, in the order of its ids.
        k: number of items to ask for, 1 … M; default 10.

    Returns:
        The report, which prints itself. `report.scores(numbers, folded)` turns the store's numbers into the metric's
        scores.

    Raises:
        ArgumentError: `search` returns something else, or `topk` refuses the features.

    The function is called four times: with the queries as they are, with 0.05 and 50 times their length, and once with
    one query and more than M items (for M up to 4,096).
    """
    asking, held = to_tensor("queries", queries), to_tensor("gallery", gallery)
    exact = topk(metric, asking, held, k)
    folded, items = _numpy(metric.fold(asking.float())), _numpy(metric.gallery(held.float()))
    found = Found(folded, items, exact.indices.cpu().numpy())
    plain = found.answer(_asked(search, folded, k, len(items)), 1.0)
    scaled = {s: found.answer(_asked(search, np.float32(s) * folded, k, len(items)), s) for s in SCALES}
    lengths = np.linalg.norm(items.astype(np.float64), axis=1)
    form = _settled(plain, list(scaled.values()))
    return StoreReport(
        k, plain.recall, plain.ordered, form, plain.direction, plain.largest_error, scaled,
        _padding(search, folded[:1], len(items)), plain.missing,
        float(lengths.mean()) if np.ptp(lengths) < 1e-4 * lengths.mean() else None,
    )  # fmt: skip


def _numpy(features: torch.Tensor) -> np.ndarray:
    return features.detach().cpu().numpy()


def _settled(plain: Answer, scaled: Sequence[Answer]) -> str | None:
    """The form of the number. Unit queries leave several, such as f·g and cos; those of other lengths then decide."""
    for name in plain.forms:
        if all(name in answer.forms for answer in scaled):
            return name
    return next(iter(plain.forms), None)


@dataclass(frozen=True)
class Found:
    """The exact side of the comparison.

    Args:
        folded: the folded queries, (N, D).
        items: the gallery items, (M, D).
        best: the rows of the best items, (N, k).
    """

    folded: np.ndarray
    items: np.ndarray
    best: np.ndarray

    def answer(self, asked: tuple[Float[np.ndarray, "n k"], Int[np.ndarray, "n k"]], scale: float) -> Answer:
        """What numbers and ids of the store say, for queries `scale` times as long as `folded`."""
        numbers, ids = asked
        there = ids >= 0
        f, g = scale * self.folded.astype(np.float64), self.items.astype(np.float64)
        scores = np.where(there, np.einsum("nd,nkd->nk", f, g[ids]), -np.inf)
        bar = np.einsum("nd,nkd->nk", f, g[self.best]).min(1, keepdims=True)
        slack = 1e-6 * np.linalg.norm(f, axis=1, keepdims=True)
        # an id that comes twice counts once; an item of the same score as the last of the best is as good as it
        first = np.array([[i not in row[:at] for at, i in enumerate(row)] for row in ids.tolist()])
        good = there & first & (scores >= bar - slack)
        pairs = there & np.isfinite(numbers)
        queries, places = np.nonzero(pairs)
        # one list of pairs from here on, so that forms are compared over all queries at once
        flat, s = numbers[pairs], scores[pairs]
        lengths = np.linalg.norm(f, axis=1)[queries], np.linalg.norm(g, axis=1)[ids[queries, places]]
        forms = fitting_forms(flat, s, *lengths)
        nearest = next((form for form in FORMS if form.name == next(iter(forms), None)), None)
        error = float("nan") if nearest is None else np.abs(flat - nearest.from_score(s, *lengths)).max()
        # best first by the true scores; equal ones may stand in either order, hence the slack
        falls = [bool((np.diff(row[on]) <= one).all()) for row, on, one in zip(scores, there, slack, strict=True)]
        return Answer(
            recall=float(good.sum() / self.best.size),
            ordered=float(np.mean(falls)) if len(falls) else 1.0,
            forms=forms,
            direction=_direction(numbers, pairs),
            largest_error=float(error),
            missing=int((~there).sum()),
        )


def _direction(numbers: np.ndarray, pairs: np.ndarray) -> str:
    steps = [np.diff(row[on]) for row, on in zip(numbers, pairs, strict=True)]
    for name, sign in (("larger first", -1), ("smaller first", 1)):
        if all((sign * step >= 0).all() for step in steps):
            return name
    return "not sorted"


def _asked(search: Search, folded: np.ndarray, k: int, items: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers (float64) and ids of N×k places; a place without an item holds NaN and -1."""
    rows = _rows(search(np.ascontiguousarray(folded), k), len(folded))
    numbers, ids = np.full((len(folded), k), np.nan), np.full((len(folded), k), -1, dtype=np.int64)
    for at, (row, which) in enumerate(rows):
        count = min(len(row), k)
        numbers[at, :count], ids[at, :count] = row[:count], which[:count]
    empty = (ids < 0) | (ids >= items) | np.isnan(numbers)
    return np.where(empty, np.nan, numbers), np.where(empty, -1, ids)


def _rows(answer: object, queries: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The rows of an answer as numbers and ids, whatever tables or lists the store gave."""
    rule = f"return (numbers, ids): {queries} rows of each, numbers beside row numbers of the gallery"
    remedy = "Give `lambda folded, k: (distances, ids)` around the store's own call."
    if not isinstance(answer, tuple | list) or len(answer) != 2:
        raise ArgumentError("search", rule, type(answer).__name__, remedy)
    numbers, ids = answer
    if len(numbers) != queries or len(ids) != queries:
        raise ArgumentError("search", rule, f"{len(numbers)} and {len(ids)} rows", remedy)
    rows = []
    for row, which in zip(numbers, ids, strict=True):
        try:
            values, places = np.asarray(row, dtype=np.float64), np.asarray(which).astype(np.int64)
        except (TypeError, ValueError, OverflowError) as error:
            raise ArgumentError("search", rule, f"a row that holds none ({error})", remedy) from error
        if values.ndim != 1 or values.shape != places.shape:
            raise ArgumentError("search", rule, f"rows of shapes {values.shape} and {places.shape}", remedy)
        rows.append((values, places))
    return rows


def _padding(search: Search, folded: np.ndarray, items: int) -> str:
    """What a store answers that is asked for more items than it has."""
    if items > PADDING_ASKED_UP_TO or not len(folded):
        return f"not asked: the gallery has more than {PADDING_ASKED_UP_TO:,} items" if len(folded) else "not asked"
    try:
        answer = search(np.ascontiguousarray(folded), items + 5)
    except Exception as error:  # noqa: BLE001 — a store's own error is the finding
        return f"raises {type(error).__name__}"
    numbers, ids = _rows(answer, 1)[0]
    if len(ids) < items + 5:
        return f"{len(ids)} rows for {items} items"
    outside = ids[(ids < 0) | (ids >= items)]
    kind = f"id {outside[0]}" if len(outside) else "ids that came before"
    return f"pads with {kind}" + (" and NaN" if np.isnan(numbers[items:]).any() else "")
