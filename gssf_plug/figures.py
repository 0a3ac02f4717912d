"""An empty matplotlib figure for the plots of every room.

matplotlib is an extra: it is imported when a figure is asked for, and pyplot (its global state) is never touched, so
that neither a notebook's backend nor other open figures notice.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["make_figure"]


def make_figure(width: float, height: float) -> "Figure":
    """A figure with its own white ground, so that it can be read on light and dark pages; save it with `savefig(path)`.

    Args:
        width: width of the figure in inches.
        height: height of the figure in inches.

    Raises:
        ModuleNotFoundError: matplotlib is not installed; the message says how to install it.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("Plots need matplotlib: run `pip install matplotlib`.") from error
    return Figure(figsize=(width, height), layout="constrained", facecolor="white")
