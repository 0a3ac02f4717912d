"""All similarities side by side: the order of the table, the choice beyond cosine, what an interruption leaves."""

import pytest
import torch
from retrieval.fitting.noisy_channels import noisy_channels

from gssf_plug.evaluation import document_ranking
from gssf_plug.retrieval.fitting import comparison
from gssf_plug.retrieval.fitting.candidates import make_candidates
from gssf_plug.retrieval.fitting.comparison import Comparison
from gssf_plug.retrieval.fitting.report import FitRow
from gssf_plug.retrieval.fitting.splits import read_part
from gssf_plug.retrieval.fitting.training import Schedule

NAMES = ("queries", "documents", "pairs", "ignored")


def part_of(count: int, seed: int = 0):
    return read_part(NAMES, (*noisy_channels(count, 60, seed=seed), None), None, None)


@pytest.fixture
def made() -> Comparison:
    """Trained on 200 queries, measured on 80 others."""
    queries, documents, pairs = noisy_channels(280, 60)
    held = torch.stack([torch.arange(80), pairs[200:, 1]], dim=1)
    train = read_part(NAMES, (queries[:200], documents, pairs[:200], None), None, None)
    return Comparison(
        train,
        [(train, read_part(NAMES, (queries[200:], documents, held, None), None, None))],
        "mAP",
        Schedule(batch_size=256, max_epochs=10, patience=1, seed=0),
        False,
        True,
    )


def test_the_table_begins_with_baselines_and_keeps_the_order_of_the_candidates(made: Comparison) -> None:
    candidates = make_candidates(
        [{"terms": ("diagonal",)}, {"terms": ("dense",)}, {"block_size": 8}], "softmax", None, 24
    )
    result = made.run(candidates, None)
    names = [row.name for row in result.table]
    assert names == ["cosine", "cosine, whitened by pairs", "closed form", *(each.name for each in candidates)]
    assert [row.metric for row in result.table[:3]] == [True, False, True]
    assert set(result.metrics) == set(names[2:])
    assert (result.queries, result.documents, result.folds) == (80, 60, 1)
    _, held = made.splits[0]
    given = (held.queries.features, held.documents.features, torch.stack([held.pairs.rows, held.pairs.items], 1))
    for row in result.table:
        metric = None if row.name == "cosine" else result.metrics.get(row.name)
        if metric is not None or row.name == "cosine":
            assert row.value == pytest.approx(document_ranking(*given, metric)["mAP"], abs=1e-3), row.name
    assert result.metrics[result.taken] is result.metric


@pytest.mark.parametrize("closed_form", [True, False])
def test_the_closed_form_is_taken_only_where_a_dense_metric_was_asked_for(made: Comparison, closed_form: bool) -> None:
    made.closed_form = closed_form
    result = made.run([], None)
    assert ("closed form" in result.metrics) == closed_form
    row = result.table[2]
    assert (row.metric, row.note) == ((True, "") if closed_form else (False, "no structure that was asked for"))
    assert (result.taken == "closed form") == closed_form
    assert result.metric.dim == 24


def row(name: str, value: float, gain: float, error: float, parameters: int = 1) -> FitRow:
    return FitRow(name, parameters, value, gain, error, 0.0)


@pytest.mark.parametrize(
    ("rows", "taken", "said"),
    [
        ([row("a", 45.0, 5.0, 1.0), row("b", 46.0, 6.0, 1.0)], "b", "it gains 6.00 ± 1.00 over cosine"),
        ([row("a", 45.0, 5.0, 1.0), row("b", 46.0, 6.0, 4.0)], "a", "it gains 5.00 ± 1.00 over cosine"),
        ([row("a", 45.0, 5.0, 1.0, 9), row("b", 45.0, 5.0, 1.0, 3)], "b", "the best on validation"),
        ([row("a", 41.0, 1.0, 1.0)], "cosine", "the best candidate, a, gains +1.00 ± 1.00, not beyond twice"),
        ([], "cosine", "no candidate was measured"),
    ],
)
def test_what_is_taken_and_why(made: Comparison, rows: list[FitRow], taken: str, said: str) -> None:
    """Beyond cosine first, then the higher value, then the fewer parameters."""
    made.rows = [row("cosine", 40.0, 0.0, 0.0), row("whitened", 99.0, 59.0, 1.0), *rows]
    made.metrics = dict.fromkeys((each.name for each in rows), made._neutral(normalize=True))
    name, reason = made._choice()
    assert name == taken
    assert said in reason


def test_the_candidate_in_the_middle_of_each_loss_comes_first() -> None:
    structures = [{"terms": ("diagonal",)}, {"block_size": 8}, {"terms": ("dense",)}]
    candidates = make_candidates(structures, None, None, 24)
    order = comparison._middle_first(candidates)
    assert sorted(map(id, order)) == sorted(map(id, candidates))
    losses = list(dict.fromkeys(each.loss for each in candidates))
    assert len(losses) == 2
    for first, loss in zip(order, losses, strict=False):
        assert first is [each for each in candidates if each.loss == loss][1]


def test_ctrl_c_leads_to_the_choice_with_what_there_is(made: Comparison, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Comparison, "_candidate", interrupt)
    result = made.run(make_candidates([{"terms": ("diagonal",)}], "softmax", None, 24), part_of(20, 1))
    assert result.interrupted
    assert result.test is None
    assert [each.name for each in result.table] == ["cosine", "cosine, whitened by pairs", "closed form"]
