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


def test_these_files_hold_tests_and_name_their_module_or_what_it_gives() -> None:
    """A file that tests something else under this name would be found."""
    strange = []
    for module in modules():
        text = mirror(module).read_text(encoding="utf-8")
        names = _public_names(ROOT / "gssf_plug" / module)
        tests = [node for node in ast.walk(ast.parse(text)) if getattr(node, "name", "").lower().startswith("test")]
        if not tests or not any(name in text for name in (module.stem, *names)):
            strange.append(module.as_posix())
    assert strange == []


def _public_names(path: Path) -> set[str]:
    """What `__all__` of a module lists."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return set(ast.literal_eval(node.value))
    return set()
