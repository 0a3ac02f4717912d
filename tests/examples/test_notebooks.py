"""The notebooks are the tutorials: the same text, no outputs, and they run from top to bottom."""

import json

import nbformat
import pytest
import readme
from jupyter_client.provisioning import KernelProvisionerFactory
from nbclient import NotebookClient
from tools.notebooks import NOTEBOOKS, ROOT, TUTORIALS, notebook_of
from workers import notebook_kernels


def test_there_is_one_for_each_tutorial_and_it_is_the_tutorial():
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == {path.stem for path in TUTORIALS}
    for tutorial in TUTORIALS:
        written = (NOTEBOOKS / f"{tutorial.stem}.ipynb").read_text(encoding="utf-8")
        assert written == notebook_of(tutorial), "run python tests/tools/notebooks.py"


@pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda path: path.stem)
def test_its_cells_are_the_blocks_of_the_page_without_outputs(tutorial):
    cells = json.loads(notebook_of(tutorial))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert code == [block.strip("\n") for block in readme.python_blocks(tutorial.read_text(encoding="utf-8"))]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells if "outputs" in cell)


@pytest.mark.filterwarnings("default")  # of the notebook's client
@pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda path: path.stem)
def test_it_runs(tutorial, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "examples"))  # the tutorials start Python in that folder
    notebook_kernels.use(KernelProvisionerFactory.instance(), monkeypatch)
    notebook = nbformat.reads(notebook_of(tutorial), as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell("import warnings\n\nwarnings.simplefilter('error')"))
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
