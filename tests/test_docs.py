"""Documentation is executed: README, pages, docstrings. Public names and the version are in it. The checks can fail."""

import importlib
import pkgutil
import re
from pathlib import Path

import pytest
import readme
from mktestdocs import check_docstring, check_md_file

import gssf_plug

ROOT = Path(__file__).resolve().parent.parent
SKETCHES = {"design.md"}  # shows names, not programs
PAGES = [page for page in sorted((ROOT / "docs").rglob("*.md")) if page.name not in SKETCHES]
ROOMS = [name for _, name, package in pkgutil.iter_modules(gssf_plug.__path__, "gssf_plug.") if package]


def public_names() -> list[tuple[str, str]]:
    modules = ["gssf_plug", *ROOMS]
    return [(module, name) for module in modules for name in importlib.import_module(module).__all__]


def undocumented(text: str) -> list[str]:
    return [f"{module}.{name}" for module, name in public_names() if not re.search(rf"\b{re.escape(name)}\b", text)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_run_as_printed(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_md_file(page, memory=True)


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


def test_a_false_block_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nassert 1 == 2\n```\n")
    with pytest.raises(AssertionError):
        check_md_file(page, memory=True)


def test_every_public_name_is_documented() -> None:
    assert undocumented((ROOT / "docs" / "api.md").read_text()) == []


def test_a_missing_name_is_found() -> None:
    assert "gssf_plug.GSSFMetric" in undocumented("GSSFMetrics only")


@pytest.mark.parametrize(("module", "name"), public_names(), ids=lambda part: str(part))
def test_docstring_examples_run(module: str, name: str) -> None:
    thing = getattr(importlib.import_module(module), name)
    if not isinstance(thing, str):
        assert thing.__doc__, f"{module}.{name} has no docstring"
        check_docstring(thing)


def test_version_stands_in_the_changelog() -> None:
    changelog = (ROOT / "docs" / "changelog.md").read_text()
    assert re.search(rf"^## {re.escape(gssf_plug.__version__)}\b", changelog, flags=re.MULTILINE)
