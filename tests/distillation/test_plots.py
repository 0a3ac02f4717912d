"""The figure holds the similarities of both sides, sorted by group, and says how far they agree."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from torch import Tensor

from gssf_plug import GSSFMetric
from gssf_plug.distillation.plots import NAMED, plot_similarities, plot_training
from gssf_plug.errors import ArgumentError, CheckpointError

OFF = ~torch.eye(6, dtype=torch.bool)


def drawn(figure: Figure, panel: int) -> Tensor:
    return torch.from_numpy(figure.axes[panel].images[0].get_array().data)


def cosines(features: Tensor) -> Tensor:
    return torch.cosine_similarity(features[:, None].double(), features[None].double(), dim=-1).float()


def said(figure: Figure) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+\.\d+", figure.axes[1].get_title())]


def agreement(ours: Tensor, theirs: Tensor) -> list[float]:
    x, y = ours[OFF], theirs[OFF]
    return [float(spearmanr(x, y).statistic), float((x - y).abs().mean())]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_both_sides_are_drawn_on_one_scale(dtype: torch.dtype, tmp_path: Path) -> None:
    student, teacher = torch.randn(6, 4).to(dtype), torch.randn(6, 9)
    figure = plot_similarities(student, teacher, title="before")
    torch.testing.assert_close(drawn(figure, 0), cosines(teacher))
    torch.testing.assert_close(drawn(figure, 1), cosines(student))
    every = torch.stack([cosines(student)[OFF], cosines(teacher)[OFF]])
    for axis in figure.axes[:2]:
        assert axis.images[0].get_clim() == pytest.approx((float(every.min()), float(every.max())), abs=1e-3)
    assert said(figure) == pytest.approx(agreement(cosines(student), cosines(teacher)), abs=0.006)
    assert figure.axes[0].get_title() == "teacher"
    figure.savefig(tmp_path / "similarities.png")
    assert (tmp_path / "similarities.png").stat().st_size > 1000


def test_ties_share_their_rank() -> None:
    student = torch.eye(3).repeat(2, 1) + torch.eye(6, 3)  # many equal similarities
    teacher = torch.randn(6, 5)
    wanted = agreement(cosines(student), cosines(teacher))
    assert said(plot_similarities(student, teacher)) == pytest.approx(wanted, abs=0.006)


def test_the_students_metric(tmp_path: Path) -> None:
    metric = GSSFMetric(4, block_size=2)
    for parameter in metric.parameters():
        torch.nn.init.normal_(parameter)
    student, teacher = torch.randn(6, 4), torch.randn(6, 4)
    figure = plot_similarities(student, teacher, metric=metric)
    torch.testing.assert_close(drawn(figure, 1), metric(student, student).detach())
    assert not torch.allclose(drawn(figure, 1), cosines(student), atol=0.1)
    torch.testing.assert_close(drawn(figure, 0), cosines(teacher))


def test_examples_of_a_group_stand_together() -> None:
    student, teacher = torch.randn(6, 4), torch.randn(6, 9)
    figure = plot_similarities(student, teacher, groups=["pear", "dog", "pear", "dog", "rain", "pear"])
    order = [0, 2, 5, 1, 3, 4]
    torch.testing.assert_close(drawn(figure, 0), cosines(teacher[order]))
    torch.testing.assert_close(drawn(figure, 1), cosines(student[order]))
    left = figure.axes[0]
    assert [text.get_text() for text in left.get_yticklabels()] == ["pear", "dog", "rain"]
    assert list(left.get_yticks()) == [1.0, 3.5, 5.0]
    assert sorted({line.get_ydata()[0] for line in left.lines if line.get_ydata()[0] > 1}) == [2.5, 4.5, 5.5]
    sorted_only = plot_similarities(student, teacher)
    assert figure.axes[1].get_title() == sorted_only.axes[1].get_title()


def test_many_groups_are_not_named() -> None:
    count = NAMED + 1
    figure = plot_similarities(torch.randn(count, 4), torch.randn(count, 4), groups=range(count))
    assert not figure.axes[0].get_yticklabels()
    assert len(figure.axes[0].lines) == 2 * count


@pytest.mark.bad_input
def test_mistakes_are_named() -> None:
    with pytest.raises(ArgumentError, match="`student` must hold the teacher's 5 examples, at least 3, but got 6"):
        plot_similarities(torch.randn(6, 4), torch.randn(5, 4))
    with pytest.raises(ArgumentError, match="`student` must hold the teacher's 2 examples, at least 3"):
        plot_similarities(torch.randn(2, 4), torch.randn(2, 4))
    with pytest.raises(ArgumentError, match="`groups` must name a group for each of the 6 examples, but got 2"):
        plot_similarities(torch.randn(6, 4), torch.randn(6, 4), groups=["a", "b"])


def test_without_matplotlib_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match="pip install matplotlib"):
        plot_similarities(torch.randn(3, 4), torch.randn(3, 4))


def history() -> list[dict[str, float]]:
    steps = [
        {"step": s, "epoch": s / 4, "loss": 2.0 / s, "learning_rate": 0.1, "a": 1.0 / s, "b": 0.5 / s}
        for s in (1, 2, 3)
    ]
    evaluated = {"step": 3, "epoch": 0.75, "eval_loss": 0.9, "eval_a": 0.4, "eval_b": 0.2, "eval_runtime": 3.0}
    return [*steps, evaluated, {"step": 3, "train_runtime": 9.0, "train_loss": 1.2, "train_steps_per_second": 2.0}]


def test_the_curves_of_a_run(tmp_path: Path) -> None:
    figure = plot_training(history(), weights={"a": 2.0, "b": 0.5}, title="a run")
    left, right = figure.axes
    drawn_lines = {line.get_label(): list(line.get_ydata()) for line in (*left.lines, *right.lines)}
    assert drawn_lines == {
        "loss": [2.0, 1.0, 2.0 / 3],
        "evaluation": [0.9],
        "a (weight 2)": [1.0, 0.5, 1.0 / 3],
        "eval_a (weight 2)": [0.4],
        "b (weight 0.5)": [0.5, 0.25, 0.5 / 3],
        "eval_b (weight 0.5)": [0.2],
    }
    assert list(left.lines[0].get_xdata()) == [1, 2, 3]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": history()}))
    assert len(plot_training(tmp_path).axes[1].lines) == 4


@pytest.mark.bad_input
def test_a_run_without_a_loss_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="`history` must hold a loss, but got 0 records"):
        plot_training([])
    with pytest.raises(CheckpointError, match=r"holds no trainer_state\.json"):
        plot_training(tmp_path)
