"""The gains of one study as bars: one panel per task and encoder, one colour per loss."""

from collections.abc import Mapping, Sequence
from statistics import mean, stdev

from matplotlib.figure import Figure

__all__ = ["plot_gains"]

Scores = Mapping[str, Sequence[float]]


def plot_gains(panels: Mapping[str, Mapping[str, Scores]], baseline: str) -> Figure:
    """Gain in mAP over the baseline of the same loss, mean over seeds, with the standard deviation as a line.

    Args:
        panels: per panel and loss the mAP of every row and seed.
        baseline: the row that the others are compared with. Plain cosine is left out. Panels hold the same rows.
    """
    figure = Figure(figsize=(2.6 + 2.2 * len(panels), 3.8), layout="constrained")
    axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    for axis, (title, losses) in zip(axes, panels.items(), strict=True):
        for place, (loss, scores) in enumerate(losses.items()):
            rows = [name for name in scores if name not in (baseline, "cosine")]
            start = mean(scores[baseline])
            heights = [mean(scores[name]) - start for name in rows]
            spreads = [stdev(scores[name]) if len(scores[name]) > 1 else 0.0 for name in rows]
            axis.barh([row + 0.4 * place for row in range(len(rows))], heights, 0.38, xerr=spreads, label=loss)
        axis.axvline(0, color="grey", linewidth=0.8)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("mAP gained")
    axes[0].set_yticks([row + 0.2 for row in range(len(rows))], rows)
    axes[0].invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure
