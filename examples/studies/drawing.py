"""The pictures of the studies: gains as bars, sizes as curves; a figure for dark pages."""

from collections.abc import Mapping, Sequence
from statistics import mean, stdev

from matplotlib.figure import Figure

__all__ = ["DARK", "LIGHT", "Row", "darkened", "plot_gains", "plot_sizes", "row_of"]

DARK, LIGHT = "#0d1117", "#e6edf3"  # ground and letters of GitHub's dark pages
Row = tuple[float, float]  # mean and standard deviation of mAP over seeds, in %


def row_of(scores: Sequence[float]) -> Row:
    """Of every seed's mAP; one seed has no spread."""
    return mean(scores), stdev(scores) if len(scores) > 1 else 0.0


def plot_gains(panels: Mapping[str, Mapping[str, Mapping[str, Row]]], baseline: str) -> Figure:
    """Gain in mAP over the baseline of the same loss, mean over seeds, with the standard deviation as a line.

    Args:
        panels: of each panel and loss the rows by name. Panels hold the same rows.
        baseline: the row that the others are compared with. Plain cosine is left out.
    """
    figure = Figure(figsize=(2.4 + 1.9 * len(panels), 3.6), layout="constrained", facecolor="white")
    axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    for axis, (title, losses) in zip(axes, panels.items(), strict=True):
        for place, (loss, rows) in enumerate(losses.items()):
            names = [name for name in rows if name not in (baseline, "cosine")]
            heights = [rows[name][0] - rows[baseline][0] for name in names]
            spreads = [rows[name][1] for name in names]
            axis.barh([row + 0.4 * place for row in range(len(names))], heights, 0.38, xerr=spreads, label=loss)
        axis.axvline(0, color="grey", linewidth=0.8)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("mAP gained")
        axis.locator_params(axis="x", integer=True)
    axes[0].set_yticks([row + 0.2 for row in range(len(names))], names)
    axes[0].invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure


def plot_sizes(sizes: Sequence[int], rows: Mapping[str, Sequence[Row]], baseline: str) -> Figure:
    """Gain in mAP over the baseline against the number of training queries, mean over seeds, spread as a line.

    Args:
        sizes: numbers of training queries, drawn in logarithms.
        rows: of each structure one value for every size.
        baseline: the row that is the zero line.
    """
    figure = Figure(figsize=(6.4, 3.8), layout="constrained", facecolor="white")
    axis = figure.subplots()
    for name, values in rows.items():
        if name == baseline:
            continue
        gains = [value - start for (value, _), (start, _) in zip(values, rows[baseline], strict=True)]
        axis.errorbar(sizes, gains, [spread for _, spread in values], marker="o", markersize=4, label=name)
    axis.axhline(0, color="grey", linewidth=0.8, label=baseline)
    axis.set_xscale("log")
    axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axis.minorticks_off()
    axis.locator_params(axis="y", integer=True)
    axis.set(xlabel="training queries", ylabel="mAP gained")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    return figure


def darkened(figure: Figure) -> Figure:
    """The same figure on the ground of a dark page: letters and lines of axes light, images as they are."""
    figure.set_facecolor(DARK)
    for axis in figure.axes:
        axis.set_facecolor(DARK)
        for text in (axis.title, axis.xaxis.label, axis.yaxis.label, *axis.texts):
            text.set_color(LIGHT)
    return figure
