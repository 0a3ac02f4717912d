"""How far a student agrees with its teacher, and how a run went, as matplotlib figures.

Save one with `figure.savefig(path)`. matplotlib is imported when a function is called (`pip install matplotlib`), and
its global state (pyplot) is left alone. A figure has its own white ground, so it can be read on light and dark pages.
"""

import os
from collections.abc import Hashable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from gssf_plug.errors import ArgumentError, CheckpointError
from gssf_plug.figures import make_figure
from gssf_plug.files import parse_json
from gssf_plug.metric import GSSFMetric

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_similarities", "plot_training"]

# What a Trainer logs besides losses and terms.
NO_TERMS = {"step", "epoch", "learning_rate", "grad_norm", "total_flos", "train_loss", "num_input_tokens_seen"}
TIMINGS = ("runtime", "_per_second")
NAMED = 24  # more groups than this are separated, but not named


@torch.no_grad()
def plot_similarities(
    student: Float[Tensor, "n student_dim"],
    teacher: Float[Tensor, "n teacher_dim"],
    *,
    groups: Sequence[Hashable] | None = None,
    metric: GSSFMetric | None = None,
    title: str = "",
) -> "Figure":
    """Similarities of all pairs of some examples, by the teacher and by the student, side by side on one scale.

    Above the student stands how far it agrees, over all pairs of two different examples: the Spearman correlation of
    its similarities with the teacher's (1: the same order), and the mean of their absolute differences (0: the same
    values).

    Args:
        student: the student's features, (N, D), one row for each example.
        teacher: the teacher's features of the same examples in the same order, of any width.
        groups: name of the group of each example. Examples of a group are put together, in the order in which the
            groups come, with a line between them and their names at the side. None (default) keeps the order.
        metric: metric for the student; None (default) compares by cosine, as the teacher always does.
        title: text above the whole figure; none by default.

    Raises:
        ArgumentError: the numbers of examples or groups differ, or there are fewer than three examples.
        ModuleNotFoundError: matplotlib is not installed.
    """
    count = len(teacher)
    if len(student) != count or count < 3:
        rule = f"hold the teacher's {count} examples, at least 3"
        raise ArgumentError("student", rule, f"{len(student)} examples", "Give features of one batch to both.")
    if groups is not None and len(groups) != count:
        raise ArgumentError("groups", f"name a group for each of the {count} examples", len(groups), "Give one each.")
    order = _order(groups) if groups is not None else list(range(count))
    theirs = _similarities(teacher, None)[order][:, order]
    ours = _similarities(student, metric)[order][:, order]
    different = ~torch.eye(count, dtype=torch.bool)
    pairs = torch.stack([ours[different], theirs[different]])
    agreement = f"Spearman {_spearman(*pairs):.2f}, mean |difference| {(pairs[0] - pairs[1]).abs().mean():.2f}"
    figure = make_figure(10.4, 4.9)
    axes = figure.subplots(1, 2, sharey=True)
    for axis, name, values in zip(axes, ("teacher", f"student: {agreement}"), (theirs, ours), strict=True):
        image = axis.imshow(values.numpy(), cmap="viridis", vmin=float(pairs.min()), vmax=float(pairs.max()))
        axis.set_title(name, fontsize=9)
        axis.set(xticks=[], yticks=[])
    if groups is not None:
        _separate(axes, [groups[place] for place in order])
    figure.colorbar(image, ax=axes, label="similarity")
    figure.suptitle(title, fontsize=10)
    return figure


def plot_training(
    history: Sequence[Mapping[str, Any]] | str | os.PathLike[str],
    *,
    weights: Mapping[str, float] | None = None,
    title: str = "",
) -> "Figure":
    """The curves of a run of a DistillationTrainer: the loss on the left, each of its terms on the right.

    Training is drawn as a line, evaluation dashed in the same colour.

    Args:
        history: `trainer.state.log_history`, or the folder of a checkpoint, whose trainer_state.json holds it.
        weights: factors of the terms by name, which then stand beside their names; the curves are drawn without them.
        title: text above the whole figure; none by default.

    Raises:
        ArgumentError: nothing was logged.
        CheckpointError: the folder has no trainer_state.json that can be read.
        ModuleNotFoundError: matplotlib is not installed.
    """
    logs = history if isinstance(history, Sequence) and not isinstance(history, str) else _read_history(history)
    terms = sorted({name.removeprefix("eval_") for log in logs for name in log} - NO_TERMS - {"loss"})
    terms = [name for name in terms if not name.endswith(TIMINGS)]
    if not any("loss" in log or "eval_loss" in log for log in logs):
        raise ArgumentError("history", "hold a loss", f"{len(logs)} records without one", "Train with logging_steps=1.")
    figure = make_figure(10.0, 3.8)
    left, right = figure.subplots(1, 2)
    for axis, names in ((left, ["loss"]), (right, terms)):
        for number, name in enumerate(names):
            weight = "" if weights is None or name not in weights else f" (weight {weights[name]:g})"
            for key, style in ((name, "-"), (f"eval_{name}", "--")):
                points = [(log["step"], log[key]) for log in logs if key in log]
                label = ("evaluation" if style == "--" else f"{name}{weight}") if axis is left else f"{key}{weight}"
                if points:
                    axis.plot(
                        *zip(*points, strict=True), style, color=f"C{number}", marker="o", markersize=3, label=label
                    )
        axis.set(xlabel="step", ylabel="loss" if axis is left else "term, unweighted")
        if axis.lines:
            axis.legend(fontsize=7)
    figure.suptitle(title, fontsize=10)
    return figure


def _read_history(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    path = Path(folder) / "trainer_state.json"
    if not path.is_file():
        raise CheckpointError(folder, "holds no trainer_state.json", "Give a checkpoint folder of a Trainer.")
    history: list[dict[str, Any]] = parse_json(path, path.read_text(encoding="utf-8")).get("log_history", [])
    return history


def _similarities(features: Tensor, metric: GSSFMetric | None) -> Float[Tensor, "n n"]:
    """Similarities of all pairs, cosine where there is no metric; in float32, on the CPU."""
    if metric is not None:
        return metric(features, features).float().cpu()
    unit = normalize(features.detach().float().cpu(), dim=1)
    return unit @ unit.T


def _spearman(x: Float[Tensor, " pairs"], y: Float[Tensor, " pairs"]) -> float:
    return float(torch.corrcoef(torch.stack([_ranks(x), _ranks(y)]))[0, 1])


def _ranks(values: Float[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
    """Equal values share their mean rank."""
    _, place, count = values.unique(return_inverse=True, return_counts=True)
    # the last rank of a value less half of its ties is their mean; `place` spreads it
    return (count.cumsum(0) - (count - 1) / 2).double()[place]


def _order(groups: Sequence[Hashable]) -> list[int]:
    """Places of the examples, group by group."""
    number: dict[Hashable, int] = {}
    for group in groups:
        number.setdefault(group, len(number))
    return sorted(range(len(groups)), key=lambda place: number[groups[place]])


def _separate(axes: Sequence[Any], groups: Sequence[Hashable]) -> None:
    """Lines between the groups; their names at the left, where there is room for them."""
    middles, names, end = [], [], 0
    for group, members in groupby(groups):
        start, end = end, end + len(list(members))
        middles.append((start + end - 1) / 2)
        names.append(str(group))
        for axis in axes:
            axis.axhline(end - 0.5, color="white", linewidth=0.8)
            axis.axvline(end - 0.5, color="white", linewidth=0.8)
    if len(names) <= NAMED:
        axes[0].set_yticks(middles, names, fontsize=7)
