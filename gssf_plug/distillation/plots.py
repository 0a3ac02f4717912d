"""How far a student agrees with its teacher, as a matplotlib figure. Save it with `figure.savefig(path)`.

matplotlib is imported when the function is called (`pip install matplotlib`), and its global state (pyplot) is
left alone. The figure brings its own white ground, so it can be read on light and dark pages.
"""

from collections.abc import Hashable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from gssf_plug.errors import ArgumentError
from gssf_plug.figures import make_figure
from gssf_plug.metric import GSSFMetric

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_similarities"]

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
        student: its features, one row an example.
        teacher: its features of the same examples in the same order; of any width.
        groups: what each example belongs to; examples of a group then stand together, groups in the order in which
            they come, with a line between them and their names at the side.
        metric: for the student, in place of cosine. The teacher's similarity is cosine.
        title: above everything.

    Raises:
        ArgumentError: other numbers of examples or groups, fewer than three examples.
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


def _similarities(features: Tensor, metric: GSSFMetric | None) -> Float[Tensor, "n n"]:
    """Of all pairs; cosine without a metric; float32, on the CPU."""
    if metric is not None:
        return metric(features, features).float().cpu()
    unit = normalize(features.detach().float().cpu(), dim=1)
    return unit @ unit.T


def _spearman(x: Float[Tensor, " pairs"], y: Float[Tensor, " pairs"]) -> float:
    return float(torch.corrcoef(torch.stack([_ranks(x), _ranks(y)]))[0, 1])


def _ranks(values: Float[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
    """Equal values share their mean rank."""
    _, place, count = values.unique(return_inverse=True, return_counts=True)
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
