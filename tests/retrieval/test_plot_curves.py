"""Curves over ranks: every value is drawn under its name, and nothing to draw is refused."""

import pytest

from gssf_plug.errors import ArgumentError
from gssf_plug.retrieval.plots import plot_curves


def test_every_curve_is_drawn_from_rank_one():
    figure = plot_curves({"cosine": [40.0, 60.0], "ours": [50.0, 70.0, 80.0]}, title="CMC")
    (axis,) = figure.axes
    drawn = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axis.lines}
    assert drawn == {"cosine": ([1, 2], [40.0, 60.0]), "ours": ([1, 2, 3], [50.0, 70.0, 80.0])}
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["cosine", "ours"]


@pytest.mark.bad_input
@pytest.mark.parametrize("curves", [{}, {"empty": []}])
def test_nothing_to_draw(curves):
    with pytest.raises(ArgumentError, match="`curves` must hold at least one curve with a value"):
        plot_curves(curves)
