"""One notebook for each tutorial, made from the tutorial's own text: code blocks become cells, the rest is text.

python tests/tools/notebooks.py            # writes examples/notebooks/*.ipynb, without outputs
"""

from pathlib import Path

import jupytext
import nbformat

ROOT = Path(__file__).resolve().parents[2]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
NOTEBOOKS = ROOT / "examples" / "notebooks"
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def notebook_of(tutorial: Path) -> str:
    """The notebook's JSON: the same for the same text."""
    made = jupytext.reads(tutorial.read_text(encoding="utf-8"), fmt="md")
    made.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": {"name": "python"}})
    made.cells = [shell_as_text(cell) for cell in made.cells]
    for number, cell in enumerate(made.cells):
        cell["id"] = f"{tutorial.stem}-{number}".replace("_", "-")[:64]
        cell["metadata"] = nbformat.from_dict({})
    return nbformat.writes(made) + "\n"


def shell_as_text(cell: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A block for the shell is shown, not run: it makes the environment that the notebook runs in."""
    if cell.cell_type == "code" and cell.source.startswith("%%bash"):
        return nbformat.v4.new_markdown_cell(f"```bash{cell.source.removeprefix('%%bash')}\n```")
    return cell


def main() -> None:
    """Write all of them."""
    NOTEBOOKS.mkdir(exist_ok=True)
    for tutorial in TUTORIALS:
        (NOTEBOOKS / f"{tutorial.stem}.ipynb").write_text(notebook_of(tutorial), encoding="utf-8")


if __name__ == "__main__":
    main()
