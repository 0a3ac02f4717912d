"""check_store on stores that are written here, each with one habit of a real one; real ones: test_real_stores.py."""

import numpy as np
import pytest
import torch

from gssf_plug import GSSFMetric
from gssf_plug.errors import ArgumentError
from gssf_plug.metric import check_store
from gssf_plug.metric.stores.number_forms import FORMS

ITEMS, QUERIES, DIM, K = 300, 20, 16, 10
NAMES = [form.name for form in FORMS]


def trained(**options: object) -> GSSFMetric:
    metric = GSSFMetric(DIM, block_size=4, **options)
    with torch.no_grad():
        for parameter in metric.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return metric


@pytest.fixture
def metric() -> GSSFMetric:
    return trained()


@pytest.fixture
def queries() -> torch.Tensor:
    return torch.randn(QUERIES, DIM)


@pytest.fixture
def gallery() -> torch.Tensor:
    return torch.randn(ITEMS, DIM)


class Store:
    """All items scored; the number, its order and the codes of the query are the habits."""

    def __init__(self, metric, gallery, form: str = "f·g", *, reverse: bool = False) -> None:
        self.items = metric.gallery(gallery).detach().double().numpy()
        self.form = next(one for one in FORMS if one.name == form)
        self.reverse = reverse

    def numbers(self, folded: np.ndarray) -> np.ndarray:
        f = folded.astype(np.float64)
        lengths = np.linalg.norm(f, axis=1)[:, None], np.linalg.norm(self.items, axis=1)[None]
        return self.form.from_score(f @ self.items.T, *np.broadcast_arrays(*lengths))

    def __call__(self, folded: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        numbers = self.numbers(folded)
        ids = np.argsort(-numbers if self.form.larger_first != self.reverse else numbers, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(numbers, ids, 1), ids


@pytest.mark.parametrize("form", NAMES)
def test_every_form_is_told_and_turned_into_scores(form, metric, queries, gallery):
    store = Store(metric, gallery, form)
    report = check_store(store, metric, queries, gallery, K)
    assert (report.form, report.recall, report.ordered, report.missing) == (form, 1.0, 1.0, 0)
    assert report.direction == ("larger first" if store.form.larger_first else "smaller first")
    assert report.moves == []
    assert report.largest_error < 1e-6
    folded = metric.fold(queries).detach().numpy()
    numbers, ids = store(folded, K)
    expected = metric(queries, gallery).detach().double().numpy()
    np.testing.assert_allclose(report.scores(numbers, folded), np.take_along_axis(expected, ids, 1), atol=1e-5)
    np.testing.assert_allclose(report.scores(numbers[0], folded[0]), report.scores(numbers, folded)[0])


def test_a_neutral_metric_has_unit_queries_and_their_scaled_ones_tell_the_form(queries, gallery):
    metric = GSSFMetric(DIM)
    for form in ("f·g", "cos", "1−f·g", "1−cos"):
        assert check_store(Store(metric, gallery, form), metric, queries, gallery, K).form == form


@pytest.mark.parametrize("form", ["cos", "L2"])
def test_items_of_different_lengths_need_theirs(form, queries, gallery):
    metric = trained(normalize=False)
    store = Store(metric, gallery, form)
    report = check_store(store, metric, queries, gallery, K)
    folded = metric.fold(queries).detach().numpy()
    numbers, ids = store(folded, K)
    with pytest.raises(ArgumentError, match="`item_lengths` must be given"):
        report.scores(numbers, folded)
    lengths = gallery.norm(dim=1).numpy()[ids]
    expected = np.take_along_axis(metric(queries, gallery).detach().double().numpy(), ids, 1)
    np.testing.assert_allclose(report.scores(numbers, folded, lengths), expected, atol=1e-4)


def test_the_worst_first_is_no_recall_and_said(metric, queries, gallery):
    report = check_store(Store(metric, gallery, "f·g", reverse=True), metric, queries, gallery, K)
    assert report.recall == 0.0
    assert report.ordered < 0.1
    assert any("-f" in sentence for sentence in report.advice())


def test_a_quantised_query_loses_its_length(metric, queries, gallery):
    class Codes(Store):
        def numbers(self, folded):
            return (np.clip(folded, -1, 1) * 127).astype(np.int8).astype(np.float64) @ self.items.T / 127

    report = check_store(Codes(metric, gallery), metric, queries, gallery, K)
    assert report.recall > 0.9
    assert report.scaled[0.05].recall < report.recall - 0.05
    assert any("quantise the items" in sentence for sentence in report.advice())
    assert "recall is" in str(report)


def test_a_number_of_no_form_is_said_and_gives_no_scores(metric, queries, gallery):
    class Odd(Store):
        def numbers(self, folded):
            return 3 + 100 * super().numbers(folded)

    report = check_store(Odd(metric, gallery), metric, queries, gallery, K)
    assert (report.form, report.recall) == (None, 1.0)
    assert np.isnan(report.largest_error)
    assert any("re-score" in sentence for sentence in report.advice())
    with pytest.raises(ArgumentError, match="`numbers` must be of a known form"):
        report.scores(np.zeros((1, 2)), np.ones((1, DIM)))


def test_a_form_that_moves_with_the_length_is_seen(metric, queries, gallery):
    class Clipped(Store):
        def numbers(self, folded):
            return super().numbers(folded).clip(-2, 2)

    report = check_store(Clipped(metric, gallery), metric, queries, gallery, K)
    assert report.form == "f·g"
    assert any("|f| is 50 times" in word for word in report.moves)


def test_what_a_graph_misses_is_counted(metric, queries, gallery):
    class Graph(Store):
        def __call__(self, folded, k):
            numbers, ids = super().__call__(folded, 2 * k)
            return numbers[:, ::2], ids[:, ::2]  # every second item is never reached

    report = check_store(Graph(metric, gallery), metric, queries, gallery, K)
    assert report.recall == pytest.approx(0.5)
    assert any("search effort" in sentence for sentence in report.advice())


def test_equal_items_may_come_in_any_order(metric, queries):
    half = torch.randn(60, DIM)
    gallery = torch.cat([half, half])

    class LastFirst(Store):
        def __call__(self, folded, k):
            numbers = self.numbers(folded)[:, ::-1]
            ids = np.argsort(-numbers, axis=1, kind="stable")[:, :k]
            return np.take_along_axis(numbers, ids, 1), numbers.shape[1] - 1 - ids

    report = check_store(LastFirst(metric, gallery), metric, queries, gallery, 5)
    assert (report.recall, report.ordered) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("habit", "said"),
    [
        ("fewer", "300 rows for 300 items"),
        ("minus one", "pads with id -1 and NaN"),
        ("again", "pads with ids that came before"),
        ("raises", "raises RuntimeError"),
    ],
)
def test_more_than_there_are(habit, said, metric, queries, gallery):
    class Padded(Store):
        def __call__(self, folded, k):
            if k > ITEMS and habit == "raises":
                raise RuntimeError("too many")
            numbers, ids = super().__call__(folded, k)
            more = ((0, 0), (0, k - ids.shape[1]))
            if habit == "minus one":
                return np.pad(numbers, more, constant_values=np.nan), np.pad(ids, more, constant_values=-1)
            return (np.pad(numbers, more), np.pad(ids, more)) if habit == "again" else (numbers, ids)

    assert check_store(Padded(metric, gallery), metric, queries, gallery, K).padding == said


def test_short_rows_and_empty_places_are_counted(metric, queries, gallery):
    class Short(Store):
        def __call__(self, folded, k):
            numbers, ids = super().__call__(folded, k)
            return [row[: k - 2] for row in numbers], [row[: k - 2].tolist() for row in ids]

    report = check_store(Short(metric, gallery), metric, queries, gallery, K)
    assert report.missing == 2 * QUERIES
    assert report.recall == pytest.approx(0.8)
    assert "without an item" in str(report)


def test_numpy_unsigned_ids_and_torch_answers_are_taken(metric, queries, gallery):
    store = Store(metric, gallery)

    def search(folded, k):
        assert isinstance(folded, np.ndarray)
        assert folded.dtype == np.float32
        numbers, ids = store(folded, k)
        return torch.from_numpy(numbers), ids.astype(np.uint64)

    assert check_store(search, metric, queries.numpy(), gallery.numpy(), K).recall == 1.0


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("answer", "got"),
    [
        (None, "NoneType"),
        (([1.0], [2]), "1 and 1 rows"),
        (([["a"]] * QUERIES, [[1]] * QUERIES), "a row that holds none"),
        (([[1.0, 2.0]] * QUERIES, [[1]] * QUERIES), "rows of shapes"),
    ],
)
def test_another_answer_is_refused(answer, got, metric, queries, gallery):
    with pytest.raises(ArgumentError, match=rf"`search` must return \(numbers, ids\).*{got}"):
        check_store(lambda folded, k: answer, metric, queries, gallery, K)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("search", "got"),
    [
        (None, "NoneType"),
        ("faiss", "str"),
        (np.zeros((2, 2)), "ndarray"),
        (lambda folded: folded, r"a function of \(folded\)"),
        (len, r"a function of \(obj, /\)"),
    ],
)
def test_what_cannot_search_is_refused_before_anything_is_searched(search, got, metric, queries, gallery):
    with pytest.raises(ArgumentError, match=rf"`search` must be a function search\(folded, k\).*got {got}.*Give `lam"):
        check_store(search, metric, queries, gallery, K)


def test_an_error_of_the_store_itself_comes_through(metric, queries, gallery):
    def search(folded, k, retries=3):
        raise ConnectionError("no server")

    with pytest.raises(ConnectionError, match="no server"):
        check_store(search, metric, queries, gallery, K)


@pytest.mark.bad_input
def test_no_metric_and_no_queries_are_refused(metric, queries, gallery):
    with pytest.raises(ArgumentError, match="`metric` must be a GSSFMetric, but got None"):
        check_store(Store(metric, gallery), None, queries, gallery, K)
    with pytest.raises(ArgumentError, match="`queries` must hold at least one query"):
        check_store(Store(metric, gallery), metric, queries[:0], gallery, K)


def test_what_topk_refuses_is_refused(metric, queries, gallery):
    with pytest.raises(ArgumentError, match="`k` must"):
        check_store(Store(metric, gallery), metric, queries, gallery, ITEMS + 1)
