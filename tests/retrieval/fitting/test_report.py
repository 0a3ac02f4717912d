"""What came of a fit, in print and drawn: gains with their error, the row that was taken, what was left undone."""

import math

import matplotlib.pyplot as plt
import pytest
import torch

from gssf_plug import GSSFMetric
from gssf_plug.retrieval.fitting.report import FitResult, FitRow, compare


def result(**changes) -> FitResult:
    rows = (
        FitRow("cosine", 0, 40.0, 0.0, 0.0, 0.1),
        FitRow("whitened", 64, 41.0, 1.0, 0.6, 0.2, metric=False, note="changes both sides"),
        FitRow("diagonal", 8, 45.5, 5.5, 0.5, 1.25, steps=50, curve=((25, 0.5, 44.0), (50, 1.0, 45.5))),
    )
    metric = GSSFMetric(8, terms=("diagonal",))
    given = {
        "metric": metric, "metrics": {"diagonal": metric}, "table": rows, "taken": "diagonal", "reason": "Taken: it.",
        "measure": "mAP", "queries": 1200, "documents": 3400,
    }  # fmt: skip
    return FitResult(**{**given, **changes})


def test_gains_and_their_standard_error_by_hand():
    values, cosine = torch.tensor([50.0, 60.0, 10.0]), torch.tensor([40.0, 60.0, 5.0])
    mean, gain, error = compare(values, cosine)
    assert (mean, gain) == (40.0, 5.0)
    assert error == pytest.approx(math.sqrt(((10 - 5) ** 2 + 5**2 + 0) / 2) / math.sqrt(3))
    assert compare(values[:1], cosine[:1]) == (50.0, 10.0, math.inf)  # one query says nothing of its error


@pytest.mark.parametrize(("gain", "error", "beyond"), [(1.01, 0.5, True), (1.0, 0.5, False), (9.0, math.inf, False)])
def test_a_gain_is_beyond_cosine_at_more_than_two_errors(gain, error, beyond):
    assert FitRow("x", 1, 40.0, gain, error, 0.0).beyond == beyond


def test_the_table_in_print():
    assert str(result()).splitlines() == [
        "| similarity | parameters | mAP | over cosine | seconds | |",
        "|---|---:|---:|---:|---:|---|",
        "| cosine | 0 | 40.00 |  | 0.1 |  |",
        "| whitened | 64 | 41.00 | +1.00 ± 0.60 | 0.2 | changes both sides |",
        "| diagonal | 8 | 45.50 | +5.50 ± 0.50 | 1.2 | taken |",
        "",
        "mAP in %, of 1,200 validation queries among 3,400 documents; ± is the standard error of the gain over these "
        "queries.",
        "Taken: it.",
    ]


def test_folds_a_test_set_and_an_interruption_are_told():
    told = result(folds=5).with_test({"cosine": 30.0, "diagonal": 33.333}, True)
    said = str(told)
    assert "in 5 folds, each measured by a metric fitted without it; ±" in said
    assert "Interrupted: candidates after the last row were not tried." in said
    assert said.endswith("Test queries, mAP: cosine 30.00, diagonal 33.33.")
    assert told.metric is told.metrics["diagonal"]


def test_the_picture_shows_curves_and_where_each_ended():
    figure = result().plot()
    left, right = figure.axes
    assert [line.get_label() for line in left.get_lines()] == ["diagonal", "cosine"]
    assert left.get_lines()[0].get_xydata().tolist() == [[25, 44.0], [50, 45.5]]
    assert right.get_title() == "at its best look; taken: diagonal"
    assert len(right.containers) == 2
    plt.close(figure)
