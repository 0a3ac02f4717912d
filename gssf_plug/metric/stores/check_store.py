"""check_store: does a vector store find what exact search finds, and what is the number that it returns?

Stores differ where the query is no unit vector, as a folded one is: most return 1−f·g, −f·g, a cosine or a distance,
some list the worst item first, and where the query is quantised its length decides what is found. So the store is
asked: as it will be, and with queries of a twentieth and of fifty times their length, which change no order.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from gssf_plug.errors import ArgumentError
from gssf_plug.metric.arrays import Array, to_tensor
from gssf_plug.metric.metric import GSSFMetric
from gssf_plug.metric.options import require_metric
from gssf_plug.metric.search import topk
from gssf_plug.metric.stores.number_forms import FORMS, fitting_forms
from gssf_plug.metric.stores.report import Answer, StoreReport

__all__ = ["Search", "StoreReport", "check_store"]

Search = Callable[[np.ndarray, int], tuple[Any, Any]]
SCALES = (0.05, 50.0)
PADDING_ASKED_UP_TO = 4096  # items; some stores limit k, and a larger one costs more than the answer is worth


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
        ArgumentError: `search` is no function of two arguments or returns something else, `metric` is none, there is
            no query, or `topk` refuses the features.

    The function is called four times: with the queries as they are, with 0.05 and 50 times their length, and once with
    one query and more than M items (for M up to 4,096).
    """
    _check_search(search)
    require_metric(metric, "Give the metric whose gallery side the store holds.", values=True)
    asking, held = to_tensor("queries", queries), to_tensor("gallery", gallery)
    exact = topk(metric, asking, held, k)
    if not len(asking):
        raise ArgumentError("queries", "hold at least one query", "none", "Fifty are enough.")
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


def _check_search(search: object) -> None:
    """Refuse what cannot be called with two arguments, before anything is searched."""
    rule = "be a function search(folded, k) -> (numbers, ids)"
    remedy = "Give `lambda folded, k: (distances, ids)` around the store's own call."
    if not callable(search):
        raise ArgumentError("search", rule, type(search).__name__, remedy)
    try:
        taken = inspect.signature(search)
    except (TypeError, ValueError):  # some compiled functions do not say what they take
        return
    try:
        taken.bind(None, 0)
    except TypeError:
        raise ArgumentError("search", rule, f"a function of {taken}", remedy) from None


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
            ordered=float(np.mean(falls)),
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
    if items > PADDING_ASKED_UP_TO:
        return f"not asked: the gallery has more than {PADDING_ASKED_UP_TO:,} items"
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
