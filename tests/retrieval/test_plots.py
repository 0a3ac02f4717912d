"""The figures hold what the tensors hold."""

import sys

import pytest
import torch
from matplotlib.colors import to_hex

from gssf_plug import GSSFMetric
from gssf_plug.errors import ArgumentError
from gssf_plug.retrieval.plots import RIGHT, WRONG, plot_metric, plot_retrieved, plot_structures


def frames(figure, rows, columns):
    cells = [axis for axis in figure.axes][: rows * columns]
    colours = [to_hex(axis.spines["left"].get_edgecolor()) for axis in cells]
    return [colours[row * columns + 1 : (row + 1) * columns] for row in range(rows)]


def test_right_results_are_framed(tmp_path):
    right = torch.tensor([[True, False, False], [False, True, True]])
    images = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    figure = plot_retrieved(["a cat", "a dog"], [list(images), list(images)], right, title="found")
    assert frames(figure, 2, 4) == [[RIGHT if hit else WRONG for hit in row] for row in right.tolist()]
    drawn = figure.axes[1].images[0].get_array()
    assert torch.equal(torch.tensor(drawn), images[0].permute(1, 2, 0))
    assert figure.axes[4].texts[0].get_text() == "a dog"
    figure.savefig(tmp_path / "retrieved.png")
    assert (tmp_path / "retrieved.png").stat().st_size > 1000


def test_images_find_texts():
    figure = plot_retrieved([torch.rand(3, 4, 4)], [["one", "two"]], torch.tensor([[True, False]]))
    assert [axis.texts[0].get_text() for axis in figure.axes[1:3]] == ["one", "two"]
    assert [axis.get_title() for axis in figure.axes] == ["query", "1", "2"]
    figure = plot_retrieved(["a"], [["one", "two"]], torch.tensor([[True, False]]), headings=["cosine", "GSSF"])
    assert [axis.get_title() for axis in figure.axes] == ["query", "cosine", "GSSF"]


def test_each_system_has_one_heading_over_its_results_and_a_gap_before_it(tmp_path):
    right = torch.tensor([[True, False, False, True], [False, False, True, True]])
    names = [["one", "two", "three", "four"]] * 2
    figure = plot_retrieved(["a", "b"], names, right, systems=("cosine", "GSSF"), title="found " * 30)
    assert frames(figure, 2, 5) == [[RIGHT if hit else WRONG for hit in row] for row in right.tolist()]
    assert [axis.texts[0].get_text() for axis in figure.axes[1:5]] == names[0]
    assert {axis.get_title() for axis in figure.axes} == {""}
    figure.savefig(tmp_path / "retrieved.png")
    cells, headlines = [axis.get_position() for axis in figure.axes[:5]], figure.axes[10:]
    assert [axis.texts[0].get_text() for axis in headlines] == ["cosine", "GSSF"]
    for axis, first, last in zip(headlines, (cells[1], cells[3]), (cells[2], cells[4]), strict=True):
        over = axis.get_position()
        assert over.x0 == pytest.approx(first.x0, abs=0.01)
        assert over.x1 == pytest.approx(last.x1, abs=0.01)
        assert over.y0 > first.y1
    assert cells[3].x0 - cells[2].x1 > 2 * (cells[2].x0 - cells[1].x1)
    title = figure._suptitle.get_window_extent()
    assert title.x0 >= 0
    assert title.x1 <= figure.bbox.x1


def test_long_texts_are_wrapped_into_their_cells(tmp_path):
    texts = ["women with bunny ears", "an incomprehensibility", "", "short"]
    figure = plot_retrieved(texts, [[text] for text in texts], torch.ones(4, 1, dtype=torch.bool))
    figure.savefig(tmp_path / "retrieved.png")
    for axis, text in zip(figure.axes, [text for text in texts for _ in range(2)], strict=True):
        drawn, cell = axis.texts[0].get_window_extent(), axis.get_window_extent()
        assert axis.texts[0].get_text().split() == text.split()
        assert drawn.width <= 1.1 * cell.width


@pytest.mark.parametrize("terms", [("diagonal",), ("block_diagonal",), ("diagonal", "block_diagonal"), ("dense",)])
def test_the_metric_is_drawn_as_it_is(terms, tmp_path):
    metric = GSSFMetric(12, terms=terms, block_size=4)
    for parameter in metric.parameters():
        torch.nn.init.normal_(parameter)
    figure = plot_metric(metric, title="learned")
    matrix = metric.matrix().detach()
    bars = figure.axes[0].patches
    assert {bar.get_y() for bar in bars} == {1.0}  # where nothing was learned
    ends = torch.tensor([bar.get_y() + bar.get_height() for bar in bars], dtype=torch.float32)
    torch.testing.assert_close(ends, matrix.diagonal())
    size = {"diagonal": 1, "dense": 12}.get(terms[-1], 4)
    off = matrix - torch.diag(matrix.diagonal())
    norms = [off[k : k + size, k : k + size].norm() for k in range(0, 12, size)]
    drawn = torch.tensor([bar.get_height() for bar in figure.axes[1].patches], dtype=torch.float32)
    torch.testing.assert_close(drawn, torch.tensor(norms))
    figure.savefig(tmp_path / "learned.png")


def test_structures_are_drawn_as_they_are():
    metrics = {
        "Diag": GSSFMetric(8, terms=("diagonal",)),
        "both": GSSFMetric(8, block_size=4, grouping=torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])),
        "psd": GSSFMetric(8, terms=("block_diagonal",), block_size=2, constraint="psd"),
    }
    before = {name: metric.matrix().clone() for name, metric in metrics.items()}
    axes = plot_structures(metrics).axes
    drawn = {axis.get_title(): torch.from_numpy(axis.images[0].get_array().data) for axis in axes}
    even = torch.arange(8) % 2
    assert torch.equal(drawn["Diag"], torch.eye(8, dtype=torch.bool))
    assert torch.equal(drawn["both"], even[:, None] == even)
    assert torch.equal(drawn["psd"], torch.block_diag(*[torch.ones(2, 2)] * 4).bool())
    assert [axis.get_xlabel() for axis in axes] == ["8 of 64", "32 of 64", "16 of 64"]
    assert all(torch.equal(metrics[name].matrix(), matrix) for name, matrix in before.items())


@pytest.mark.bad_input
def test_structures_of_nothing_are_refused():
    with pytest.raises(ArgumentError, match="`metrics` must hold at least one metric"):
        plot_structures({})


@pytest.mark.bad_input
def test_numbers_that_differ_are_named():
    with pytest.raises(
        ArgumentError, match="`right` must have a value for every result of every query, but got 2 queries"
    ):
        plot_retrieved(["a", "b"], [["x"]], torch.tensor([[True]]))
    with pytest.raises(ArgumentError, match="`headings` must be 1 texts, one per result, but got 2"):
        plot_retrieved(["a"], [["x"]], torch.tensor([[True]]), headings=["1", "2"])
    with pytest.raises(ArgumentError, match="`systems` must be as many as share 3 results equally, but got 2"):
        plot_retrieved(["a"], [["x", "y", "z"]], torch.ones(1, 3, dtype=torch.bool), systems=["cosine", "GSSF"])


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match="pip install matplotlib"):
        plot_metric(GSSFMetric(4, block_size=2))
