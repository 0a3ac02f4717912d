"""What was retrieved, how it was trained, what a metric learned, as matplotlib figures: `figure.savefig(path)`.

matplotlib is imported when a function is called (`pip install matplotlib`), and its global state (pyplot) is left
alone. The text on a figure is what the caller gives, and nothing is drawn that the tensors or logs do not hold. The
figures bring their own white ground, so they can be read on light and dark pages.
"""

import copy
import importlib.util
import logging
import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool
from torch import Tensor

from gssf_plug.errors import ArgumentError
from gssf_plug.figures import make_figure
from gssf_plug.files import write_atomically
from gssf_plug.metric import GSSFMetric
from gssf_plug.retrieval.training.run_log import RunLog

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_curves", "plot_metric", "plot_retrieved", "plot_structures", "plot_training"]

logger = logging.getLogger(__name__)

Item = str | Tensor  # a text, or an image (3, H, W): bytes, or floats in 0 … 1
RIGHT, WRONG = "#1f9d3a", "#dcdcdc"
CELL, GAP, LETTER = 0.72, 0.2, 0.6 / 72  # inches; a letter's for each point of its size


def plot_retrieved(
    queries: Sequence[Item],
    results: Sequence[Sequence[Item]],
    right: Bool[Tensor, "n k"],
    *,
    headings: Sequence[str] | None = None,
    systems: Sequence[str] | None = None,
    title: str = "",
) -> "Figure":
    """One row per query: the query, then what was found, best first; right items in a green frame.

    Made to be shown about 850 pixels wide: `figure.savefig(path, dpi=200)` stays sharp there.

    Args:
        queries: N texts or images.
        results: for each query its k texts or images. To compare systems give the results of each, one after the other,
            equally many of each.
        right: for each query and result whether it belongs to the query.
        headings: k texts above the results; default their places, 1 … k, or nothing below the names of systems.
        systems: names of the systems that are compared: each stands above its results, and a gap lies between them.
            Default none.
        title: text above the whole figure; none by default.

    Raises:
        ArgumentError: the numbers of queries, results, `right`, headings and systems do not fit together.
        ModuleNotFoundError: matplotlib is not installed.
    """
    if len(queries) != len(results) or right.shape != (len(results), len(results[0]) if results else 0):
        got = f"{len(queries)} queries, {len(results)} lists of results, right {tuple(right.shape)}"
        raise ArgumentError("right", "have a value for every result of every query", got, "Give one row per query.")
    count, found = right.shape
    if headings is not None and len(headings) != found:
        raise ArgumentError("headings", f"be {found} texts, one per result", len(headings), "Leave it out for 1, 2, ….")
    if systems is not None and (not systems or found % len(systems)):
        rule = f"be as many as share {found} results equally"
        raise ArgumentError("systems", rule, len(systems), "Give equally many results of each system.")
    share = found // len(systems or [""])
    texts = any(isinstance(query, str) for query in queries)
    widths = [1.35 if texts else CELL, *[GAP, *[CELL] * share] * len(systems or [""])]
    columns = [place for place, width in enumerate(widths) if place and width != GAP]
    heights = [0.3 if systems else 0.01, *[CELL] * count]
    title = _wrapped(title, sum(widths), 12)
    above = 0.23 * len(title.splitlines())
    figure = make_figure(sum(widths) + 0.4, sum(heights) + above + 0.4)
    figure.set_layout_engine("constrained", rect=_inset(figure, 0.1, above))
    grid = figure.add_gridspec(len(heights), len(widths), width_ratios=widths, height_ratios=heights)
    for row in range(count):
        _draw(figure.add_subplot(grid[row + 1, 0]), queries[row], None, widths[0], 11)
        for place, column in enumerate(columns):
            axis = figure.add_subplot(grid[row + 1, column])
            _draw(axis, results[row][place], bool(right[row, place]), CELL, 8)
    if headings is None and not systems:
        headings = [f"{place + 1}" for place in range(found)]
    for axis, heading in zip(figure.axes, ["" if systems else "query", *(headings or ())], strict=False):
        axis.set_title(heading, fontsize=9)
    for number, name in enumerate(systems or ()):
        first, last = columns[number * share], columns[(number + 1) * share - 1]
        _headline(figure.add_subplot(grid[0, first : last + 1]), name)
    figure.suptitle(title, fontsize=12, y=1 - 0.12 / figure.get_figheight(), va="top")
    return figure


def plot_metric(metric: GSSFMetric, *, title: str = "") -> "Figure":
    """What a metric learned: its diagonal, the strength of each block off the diagonal, and the blocks themselves.

    A neutral metric shows no bars: those of the diagonal start at one, those of the strengths at zero. Channels are in
    the order of the metric's grouping; in the third panel only the first 64 channels are shown.

    Args:
        metric: any GSSFMetric.
        title: text above the whole figure; none by default.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    blocks = metric.blocks().detach().float().cpu()
    diagonal = blocks.diagonal(dim1=-2, dim2=-1)
    strengths = torch.linalg.vector_norm(blocks - torch.diag_embed(diagonal), dim=(-2, -1))
    figure = make_figure(10, 3)
    weights, norms, picture = figure.subplots(1, 3)
    learned = (diagonal.flatten() - 1).tolist()
    weights.bar(range(metric.dim), learned, width=1.0, bottom=1.0, color="#3b6ea5")  # from where nothing was learned
    weights.axhline(1.0, color="black", linewidth=0.8, linestyle="--")
    weights.set(title="diagonal: weight of each channel", xlabel="channel")
    norms.bar(range(len(strengths)), strengths.tolist(), width=0.9, color="#b5651d")
    norms.set(title=f"blocks of {blocks.shape[-1]}: norm off the diagonal", xlabel="block")
    norms.locator_params(axis="x", integer=True)
    shown = torch.block_diag(*blocks)[:64, :64] - torch.eye(metric.dim)[:64, :64]
    limit = max(float(shown.abs().max()), 1e-12)
    drawn = picture.imshow(shown.numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit)
    picture.set(title="W ⊙ U less the identity")
    figure.colorbar(drawn, ax=picture)
    figure.suptitle(title, fontsize=10)
    return figure


def plot_structures(metrics: Mapping[str, GSSFMetric], *, title: str = "") -> "Figure":
    """Which entries of the matrix may differ from the identity: U, channels in the caller's order, one panel a metric.

    Args:
        metrics: metrics by name, which are drawn in this order, each at its own width.
        title: text above the whole figure; none by default.

    Raises:
        ArgumentError: there is no metric.
        ModuleNotFoundError: matplotlib is not installed.
    """
    if not metrics:
        raise ArgumentError("metrics", "hold at least one metric", "none", "Give metrics by name.")
    figure = make_figure(1.9 * len(metrics), 2.5)
    for axis, (name, metric) in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics.items(), strict=True):
        structure = _learnable(metric)
        axis.imshow(structure.numpy(), cmap="Blues", vmin=0, vmax=1.3, interpolation="nearest")
        axis.set(title=name, xlabel=f"{int(structure.sum()):,} of {structure.numel():,}", xticks=[], yticks=[])
    figure.suptitle(title, fontsize=10)
    return figure


def plot_curves(curves: Mapping[str, Sequence[float]], *, title: str = "", x: str = "rank", y: str = "%") -> "Figure":
    """Several curves over ranks 1, 2, …, such as CMC: "R@k" of `reid_ranking(..., ranks=range(1, 21))`.

    Args:
        curves: values at ranks 1, 2, … by the name of the curve; they are drawn in this order.
        title: text above the whole figure; none by default.
        x: label of the axis of ranks.
        y: label of the axis of values.

    Raises:
        ArgumentError: there is no curve, or one is empty.
        ModuleNotFoundError: matplotlib is not installed.
    """
    if not curves or not all(len(values) for values in curves.values()):
        raise ArgumentError("curves", "hold at least one curve with a value", dict(curves), "Give values by name.")
    figure = make_figure(6.4, 4.2)
    axis = figure.subplots()
    for name, values in curves.items():
        axis.plot(range(1, len(values) + 1), list(values), marker="o", markersize=3, label=name)
    axis.set(xlabel=x, ylabel=y)
    axis.locator_params(axis="x", integer=True)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure


def plot_training(runs: Mapping[str, str | os.PathLike[str]], *, measure: str = "rsum", title: str = "") -> "Figure":
    """How runs of `RetrievalTrainer` went: the training loss and a measure of the evaluation, over optimizer steps.

    Read from the runs' `log.jsonl`, so a run may still be going on. A point of the loss is the mean since the point
    before it (`RetrievalConfig.log_every`).

    Args:
        runs: `output_dir` of each run by name; they are drawn in this order.
        measure: name of a measure that the evaluation gives, such as "rsum" or "mAP".
        title: text above the whole figure; none by default.

    Raises:
        ArgumentError: there is no run, or a folder has no log or no values of `measure`.
        ModuleNotFoundError: matplotlib is not installed.
    """
    if not runs:
        raise ArgumentError("runs", "hold at least one run", "none", "Give output folders by name.")
    logs = {name: RunLog(Path(folder) / "log.jsonl").records() for name, folder in runs.items()}
    figure = make_figure(8.4, 3.6)
    losses, measures = figure.subplots(1, 2)
    for name, log in logs.items():
        losses.plot(*_points(log, "train", "loss", name), marker="o", markersize=3, label=name)
        measures.plot(*_points(log, "eval", measure, name), marker="o", markersize=3, label=name)
    for axis, heading in ((losses, "training loss"), (measures, f"{measure} of the evaluation")):
        axis.set(title=heading, xlabel="step")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure


def draw_run(folder: Path, *, measure: str) -> None:
    """Draw a run into the training.png of its folder, where matplotlib is installed; a failure is a warning."""
    if importlib.util.find_spec("matplotlib") is None:
        return
    log = RunLog(folder / "log.jsonl").records()
    found = [one for one in ("loss", measure) if any(line.get(one) is not None for line in log)]
    if not found:
        return
    try:
        figure = make_figure(5 * len(found), 3.8)
        axes = figure.subplots(1, len(found), squeeze=False)[0]
        for axis, one in zip(axes, found, strict=True):
            axis.plot(*_points(log, "train" if one == "loss" else "eval", one, folder.name), marker="o", markersize=3)
            axis.set(title="training loss" if one == "loss" else f"{one} of the evaluation", xlabel="step")
            axis.grid(alpha=0.3)
        figure.suptitle(folder.name, fontsize=10)
        write_atomically(folder / "training.png", lambda path: figure.savefig(path, format="png", dpi=110))
    except Exception as error:  # a picture is no reason to lose a run that is done
        logger.warning("the curves of '%s' could not be drawn: %s", folder, error)


def _points(log: Sequence[Mapping[str, Any]], kind: str, value: str, run: str) -> tuple[list[int], list[float]]:
    """Steps and values of the lines of one kind; lines without a value, of skipped steps, are left out."""
    lines = [line for line in log if line["kind"] == kind]
    found = [(line["step"], line[value]) for line in lines if line.get(value) is not None]
    if not found:
        known = sorted({key for line in lines for key in line})
        rule, got = f"hold a log with {kind} lines of '{value}'", f"'{run}' with {known or 'no such line'}"
        raise ArgumentError("runs", rule, got, "Give the output_dir of a run, and a measure of its evaluation.")
    steps, values = zip(*found, strict=True)
    return list(steps), list(values)


@torch.no_grad()
def _learnable(metric: GSSFMetric) -> Bool[Tensor, "dim dim"]:
    """Where the matrix is not zero once the parameters are not."""
    metric, generator = copy.deepcopy(metric), torch.Generator().manual_seed(0)
    for parameter in metric.parameters():
        parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
    return metric.matrix().cpu() != 0


def _inset(figure: "Figure", margin: float, above: float) -> tuple[float, float, float, float]:
    """Left, bottom, width and height, in parts of the figure, of what a margin and a title of `above` inches leave."""
    x, y = margin / figure.get_figwidth(), margin / figure.get_figheight()
    return x, y, 1 - 2 * x, 1 - 2 * y - above / figure.get_figheight()


def _wrapped(text: str, width: float, size: float) -> str:
    """Lines that fit a width in inches at a size in points; no word is broken."""
    letters = max(1, int(width / (LETTER * size) + 1e-6))
    return "\n".join(textwrap.fill(line, letters, break_long_words=False) for line in text.splitlines())


def _draw(axis: Any, item: Item, right: bool | None, width: float, size: float) -> None:
    """A text or an image in one cell; the frame says whether it is right, None draws no frame."""
    axis.set(xticks=[], yticks=[])
    if isinstance(item, str):
        longest = max(map(len, item.split()), default=1)
        size = min(size, width / LETTER / longest)
        text = _wrapped(item, width, size)
        axis.text(0.5, 0.5, text, ha="center", va="center", fontsize=size, transform=axis.transAxes)
    else:
        axis.imshow(item.detach().cpu().permute(1, 2, 0).numpy())
    for spine in axis.spines.values():
        spine.set_visible(right is not None)
        spine.set(color=RIGHT if right else WRONG, linewidth=3.0 if right else 0.8)


def _headline(axis: Any, name: str) -> None:
    """The name of a system over all of its columns, underlined."""
    axis.set(xticks=[], yticks=[])
    axis.text(0.5, 0.5, name, ha="center", va="center", fontsize=12, fontweight="bold", transform=axis.transAxes)
    for side, spine in axis.spines.items():
        spine.set_visible(side == "bottom")
        spine.set(color="#808080", linewidth=1.0)
