"""Documentation is executed: README, pages, docstrings. Public names and the version are in it. The checks can fail."""

import codeop
import doctest
import importlib
import inspect
import io
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import readme
import torch.distributed as dist
from mktestdocs import check_md_file

import gssf_plug

ROOT = Path(__file__).resolve().parent.parent
SKETCHES = {"design.md"}  # shows names, not programs
PAGES = [page for page in sorted((ROOT / "docs").rglob("*.md")) if page.name not in SKETCHES]
RUN_HERE = [page for page in PAGES if page.parent.name != "tutorials"]  # these: examples/test_notebooks.py
API_PAGES = [ROOT / "docs" / "api.md", *sorted((ROOT / "docs" / "api").glob("*.md"))]
API = "\n".join(page.read_text(encoding="utf-8") for page in API_PAGES)
ROOMS = [name for _, name, package in pkgutil.iter_modules(gssf_plug.__path__, "gssf_plug.") if package]
PASTED = ("attention.md", "attention_in_use.md")  # beside the README, tutorials and how-to pages
FOLLOWED = [
    ROOT / "README.md",
    *(page for page in PAGES if page.parent.name in ("tutorials", "howto") or page.name in PASTED),
]
SECTIONS = re.findall(r"^\.\. automodule:: (gssf_plug[\w.]+)$", API, flags=re.MULTILINE)
IMPORT = re.compile(r"^\s*from (gssf_plug[\w.]*) import (\([^)]*\)|[^\n]*)", flags=re.MULTILINE)


MODULES_WITH_EXAMPLES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted((ROOT / "gssf_plug").rglob("*.py"))
    if ">>>" in path.read_text(encoding="utf-8")
]


def public_names() -> list[tuple[str, str]]:
    modules = dict.fromkeys(["gssf_plug", *ROOMS, *SECTIONS])
    return [(module, name) for module in modules for name in importlib.import_module(module).__all__]


def documented(text: str) -> set[str]:
    """Names that stand there in full, as in `.. autofunction:: gssf_plug.metric.topk`, and whole modules of members."""
    whole = re.findall(r"automodule:: (gssf_plug[\w.]+)\n   :members:", text)
    members = {f"{module}.{name}" for module in whole for name in vars(importlib.import_module(module))}
    return set(re.findall(r"\bgssf_plug(?:\.\w+)+", text)) | members


def undocumented(text: str) -> list[str]:
    there = documented(text)
    return [f"{module}.{name}" for module, name in public_names() if f"{module}.{name}" not in there]


def imported(text: str) -> set[str]:
    """What a page tells its reader to import from the library."""
    return {
        f"{module}.{name.split(' as ')[0].strip()}"
        for module, names in IMPORT.findall(text)
        for name in names.partition("#")[0].strip("() ").replace("\n", "").split(",")
        if name.strip()
    }


def run_examples(module: ModuleType) -> tuple[int, str]:
    """How many lines of examples a module's docstrings have, and what is wrong with them."""
    runner, said = doctest.DocTestRunner(verbose=False), io.StringIO()
    for examples in doctest.DocTestFinder().find(module):
        runner.run(examples, out=said.write)
    return runner.tries, said.getvalue()


def stops_at(block: str) -> str | None:
    """The line at which an interactive Python, given a block line by line, would stop; None where it takes all."""
    compiler, pending = codeop.CommandCompiler(), ""
    for line in [*block.splitlines(), ""]:
        try:
            taken = compiler(pending + line, symbol="single") is not None
        except SyntaxError:
            return line
        pending = "" if taken else pending + line + "\n"
    return pending or None


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # by PEFT
@pytest.mark.parametrize("page", RUN_HERE, ids=lambda page: page.name)
def test_pages_run_as_printed(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        check_md_file(page, memory=True)
    finally:
        if dist.is_initialized():  # a page on processes that did not come to its end
            dist.destroy_process_group()


@pytest.mark.parametrize("page", FOLLOWED, ids=lambda page: page.name)
def test_pages_can_be_pasted_into_an_interactive_python(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert [stops_at(block) for block in readme.python_blocks(text)] == [None] * text.count("```python")


def test_a_block_that_cannot_be_pasted_is_found() -> None:
    assert stops_at("for i in range(2):\n    print(i)\n\nprint(3)\n") is None
    assert stops_at("for i in range(2):\n    print(i)\nprint(3)\n") == "print(3)"
    assert stops_at("class A:\n    x = 1\n\n    def f(self): ...\n") == "    def f(self): ..."
    assert stops_at("print(1,\n") is not None


def too_wide(text: str) -> list[str]:
    """Lines of python that a page of 1,280 pixels would have to wrap."""
    return [line for block in readme.python_blocks(text) for line in block.splitlines() if len(line) > 100]


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_code_of_pages_fits_a_hundred_columns(page: Path) -> None:
    assert too_wide(page.read_text(encoding="utf-8")) == []


def test_a_line_that_is_too_wide_is_found() -> None:
    assert too_wide(f"```python\nx = 1\n{'y' * 101}\n```\n{'z' * 200}\n") == ["y" * 101]


def test_the_page_on_fsdp_runs_in_two_processes(tmp_path: Path) -> None:
    """As printed, by torchrun, on CPUs."""
    page = (ROOT / "docs" / "howto" / "fsdp.md").read_text(encoding="utf-8")
    (tmp_path / "page.py").write_text("\n".join(readme.python_blocks(page)) + '\nprint(f"{processes} came to the end")')
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "page.py"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    assert done.stdout.count("2 came to the end") == 2


def test_readme_runs_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(readme.python_blocks()) >= 3
    for block in readme.python_blocks():
        assert len(block.strip().splitlines()) <= 15
        exec(compile(block, "README.md", "exec"), {"__name__": "readme"})


def test_readme_has_exactly_two_commands() -> None:
    assert readme.commands() == [readme.command("run"), readme.command("test")]


def test_two_commands_under_one_name_are_refused() -> None:
    block = "<!-- command: test -->\n```bash\ntrue\n```\n"
    assert readme.command("test", block) == "true"
    with pytest.raises(ValueError, match="one one-line command called 'test'"):
        readme.command("test", block * 2)


def test_messages_say_what_to_install_by_its_own_name() -> None:
    """Not as an extra of ours, which pip finds only where this library comes from an index."""
    files = [path for room in ("gssf_plug", "examples") for path in (ROOT / room).rglob("*.py")]
    assert [path for path in files if "gssf-plug[" in path.read_text(encoding="utf-8")] == []


def test_a_false_block_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nassert 1 == 2\n```\n")
    with pytest.raises(AssertionError):
        check_md_file(page, memory=True)


def test_every_public_name_is_documented() -> None:
    assert undocumented(API) == []


def test_a_missing_name_is_found() -> None:
    assert "gssf_plug.GSSFMetric" in undocumented(API.replace("gssf_plug.GSSFMetric", "gssf_plug.GSSFMetrics"))
    assert "gssf_plug.metric.topk" in undocumented("topk and gssf_plug.metric.topka are no gssf_plug.metric")


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_pages_import_public_names_alone(page: Path) -> None:
    assert imported(page.read_text(encoding="utf-8")) - documented(API) == set()


def test_an_import_of_something_else_is_found() -> None:
    text = "from gssf_plug.metric import (\n    topk,\n    hidden as h,\n)\nfrom gssf_plug import GSSFMetric  # it"
    assert imported(text) - documented(API) == {"gssf_plug.metric.hidden"}


@pytest.mark.parametrize(("module", "name"), public_names(), ids=lambda part: str(part))
def test_every_public_name_has_a_docstring(module: str, name: str) -> None:
    thing = getattr(importlib.import_module(module), name)
    if inspect.isclass(thing) or inspect.isroutine(thing):  # aliases of types and constants have none
        assert thing.__doc__, f"{module}.{name} has no docstring"


@pytest.mark.parametrize("module", MODULES_WITH_EXAMPLES)
def test_docstring_examples_run(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    attempted, wrong = run_examples(importlib.import_module(module))
    assert attempted > 0
    assert wrong == ""


def test_a_false_example_is_found() -> None:
    module = ModuleType("module", ">>> 1 + 1\n3\n")
    attempted, wrong = run_examples(module)
    assert attempted == 1
    assert "Expected:\n    3\nGot:\n    2" in wrong


def test_version_stands_in_the_changelog() -> None:
    changelog = (ROOT / "docs" / "changelog.md").read_text()
    assert re.search(rf"^## {re.escape(gssf_plug.__version__)}\b", changelog, flags=re.MULTILINE)
