"""An empty figure for every plot: its size, its ground, pyplot left alone, and the sentence without matplotlib."""

import sys

import pytest
from matplotlib import pyplot

from gssf_plug.figures import make_figure


def test_a_figure_has_its_size_and_a_white_ground() -> None:
    figure = make_figure(3.0, 2.0)
    assert tuple(figure.get_size_inches()) == (3.0, 2.0)
    assert figure.get_facecolor() == (1.0, 1.0, 1.0, 1.0)


def test_pyplot_does_not_know_it() -> None:
    before = pyplot.get_fignums()
    make_figure(3.0, 2.0)
    assert pyplot.get_fignums() == before


def test_without_matplotlib_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match="pip install matplotlib"):
        make_figure(3.0, 2.0)
