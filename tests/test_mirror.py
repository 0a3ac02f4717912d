"""Tests mirror the package: gssf_plug/room/noun.py is tested in tests/room/test_noun.py."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def modules() -> list[Path]:
    """Every module as a path below the package; those of `evaluate` are tested as one."""
    package = ROOT / "gssf_plug"
    found = (path.relative_to(package) for path in sorted(package.rglob("*.py")))
    return [path for path in found if path.name != "__init__.py" and "modules" not in path.parts]


def mirror(module: Path) -> Path:
    """The test file of a module."""
    return ROOT / "tests" / module.parent / f"test_{module.name}"


def test_every_module_has_a_test_file_of_its_name() -> None:
    assert len(modules()) > 100
    assert [path.as_posix() for path in modules() if not mirror(path).is_file()] == []


def test_these_files_hold_tests() -> None:
    empty = [path.as_posix() for path in map(mirror, modules()) if not _tests(path)]
    assert empty == []


def _tests(path: Path) -> list[str]:
    """Names of test functions and classes."""
    found = (str(getattr(node, "name", "")) for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    return [name for name in found if name.startswith(("test_", "Test"))]
