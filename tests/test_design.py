"""The house: the tree in docs/design.md is the folders', and no room, file or function outgrows its limit."""

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DESIGN = ROOT / "docs" / "design.md"
MODULES_IN_A_FOLDER, LINES_IN_A_FILE, LINES_IN_A_FUNCTION = 13, 350, 64
SOURCES = sorted(path for path in (ROOT / "gssf_plug").rglob("*.py") if "modules" not in path.parts)


def drawn(page: str) -> set[str]:
    """Paths of the modules in the page's tree of gssf_plug/: two blanks more for each folder."""
    lines = page.split("## Layout\n```\n")[1].split("```")[0].splitlines()
    above, found = [], set()
    for line in lines:
        name, depth = line.split()[0], (len(line) - len(line.lstrip())) // 2
        above[depth:] = [name]
        if name.endswith(".py") and above[0] == "gssf_plug/":
            found.add("".join(above))
    return found


def there() -> set[str]:
    paths = {path.relative_to(ROOT).as_posix() for path in SOURCES}
    return {path for path in paths if not path.endswith("/__init__.py")} | {"gssf_plug/__init__.py"}


def test_the_tree_is_the_folders():
    assert drawn(DESIGN.read_text(encoding="utf-8")) == there()


def test_nothing_else_stands_at_the_top():
    """Neither in a commit nor about to be, such as what a test left behind."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    top = {path.split("/")[0] for path in files if path and not path.startswith(".")}
    assert top == {"gssf_plug", "examples", "tests", "docs", "findings", "pyproject.toml", "README.md", "LICENSE"}


def test_a_missing_and_an_invented_file_are_seen():
    page = "## Layout\n```\ngssf_plug/\n  a.py  first\n  room/\n    b.py  second\ntests/\n  c.py  third\n```\n"
    assert drawn(page) == {"gssf_plug/a.py", "gssf_plug/room/b.py"}


@pytest.mark.parametrize("folder", sorted({path.parent for path in SOURCES}), ids=lambda path: path.name)
def test_a_folder_has_few_doors(folder):
    doors = sorted(path.name for path in folder.glob("*.py") if path.name != "__init__.py")
    assert len(doors) <= MODULES_IN_A_FOLDER, doors


def test_files_and_functions_are_short():
    long = {}
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        spans = {"": text.count("\n")} | {
            node.name: node.end_lineno - node.lineno + 1
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        }
        limits = {name: LINES_IN_A_FUNCTION if name else LINES_IN_A_FILE for name in spans}
        long |= {f"{path.name}:{name}": lines for name, lines in spans.items() if lines > limits[name]}
    assert not long
