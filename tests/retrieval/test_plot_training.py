"""Losses and measures are those of the log, run by run; a folder without them is named."""

import json

import pytest
from retrieval import toy

from gssf_plug.errors import ArgumentError
from gssf_plug.retrieval.plots import plot_training


def lines_of(axis):
    return {line.get_label(): list(zip(line.get_xdata(), line.get_ydata(), strict=True)) for line in axis.lines}


def write_log(folder, *records):
    folder.mkdir()
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def test_runs_are_drawn_as_logged(tmp_path):
    one = write_log(
        tmp_path / "one",
        {"step": 1, "kind": "train", "loss": 3.0},
        {"step": 2, "kind": "train", "loss": None},
        {"step": 3, "kind": "train", "loss": 1.0},
        {"step": 3, "kind": "eval", "rsum": 50.0, "mAP": 10.0},
    )
    two = write_log(
        tmp_path / "two", {"step": 5, "kind": "train", "loss": 2.0}, {"step": 5, "kind": "eval", "mAP": 20.0}
    )
    figure = plot_training({"one": one, "two": two}, measure="mAP")
    losses, measures = figure.axes
    assert lines_of(losses) == {"one": [(1, 3.0), (3, 1.0)], "two": [(5, 2.0)]}
    assert lines_of(measures) == {"one": [(3, 10.0)], "two": [(5, 20.0)]}
    assert measures.get_title() == "mAP of the evaluation"
    with pytest.raises(ArgumentError, match="lines of 'rsum', but got 'two' with .'kind', 'mAP', 'step'."):
        plot_training({"one": one, "two": two})


def test_a_real_run(tmp_path):
    trainer = toy.trainer(tmp_path / "run", changes={"epochs": 2, "log_every": 1})
    trainer.train()
    losses, measures = plot_training({"toy": tmp_path / "run"}).axes
    assert [step for step, _ in lines_of(losses)["toy"]] == list(range(1, trainer.steps + 1))
    assert lines_of(measures)["toy"][-1][1] == pytest.approx(trainer.evaluate()["rsum"])


@pytest.mark.bad_input
def test_nothing_to_draw(tmp_path):
    with pytest.raises(ArgumentError, match="`runs` must hold at least one run"):
        plot_training({})
    with pytest.raises(ArgumentError, match="train lines of 'loss', but got 'none' with no such line"):
        plot_training({"none": tmp_path})
