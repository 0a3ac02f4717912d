"""What tests and examples import is what their extra installs: a clone needs no more than the README's commands."""

import ast
import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
OWN = {"gssf_plug", *(path.stem for folder in ("tests", "examples") for path in (ROOT / folder).glob("*"))}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def imported(folder: str) -> Iterator[tuple[str, str]]:
    """What files import as they are imported themselves, by its first name, and where; not what they may do without."""
    for path in (ROOT / folder).rglob("*.py"):
        if path.parent != ROOT / "examples" / "data":  # how the data were made, which says what it needs
            beside = {other.stem for other in path.parent.iterdir()}
            named = first_names(path.read_text()) - OWN - beside - sys.stdlib_module_names
            yield from ((name, str(path.relative_to(ROOT))) for name in named)


def first_names(text: str) -> set[str]:
    names = []
    for node in ast.parse(text).body:
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
    return {name.partition(".")[0] for name in names} - set(re.findall(r'importorskip\("(\w+)', text))


def asked(extra: str) -> Iterator[Requirement]:
    """Requirements of the project with an extra, those of other extras that it names included."""
    for requirement in map(Requirement, [*PROJECT["dependencies"], *PROJECT["optional-dependencies"][extra]]):
        if requirement.name == PROJECT["name"]:
            for other in requirement.extras:
                yield from asked(other)
        else:
            yield requirement


def installed(extra: str) -> set[str]:
    """Distributions that pip installs with an extra."""
    found: set[tuple[str, str]] = set()
    waiting = list(asked(extra))
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        for own in {"", *requirement.extras}:
            if (name, own) not in found:
                found.add((name, own))
                try:
                    lines = importlib.metadata.requires(name) or []
                except importlib.metadata.PackageNotFoundError:  # of another platform
                    continue
                further = map(Requirement, lines)
                waiting += [one for one in further if one.marker is None or one.marker.evaluate({"extra": own})]
    return {name for name, _ in found}


@cache
def distributions() -> dict[str, set[str]]:
    """Distributions that hold a module of that first name."""
    named = importlib.metadata.packages_distributions().items()
    return {module: {canonicalize_name(name) for name in names} for module, names in named}


@pytest.mark.parametrize(("folder", "extra"), [("tests", "test"), ("examples", "examples")])
def test_the_extra_installs_what_is_imported(folder: str, extra: str) -> None:
    there = installed(extra)
    missing = {(module, path) for module, path in imported(folder) if not distributions().get(module, set()) & there}
    assert not missing, missing


def test_what_is_imported_and_installed_is_found() -> None:
    text = "import torch.nn as nn\nfrom numpy import array\nfrom . import own\n"
    text += 'x = pytest.importorskip("faiss")\nimport faiss'
    assert first_names(text) == {"torch", "numpy"}
    assert {"torch", "numpy", "pytest", "faiss-cpu"} <= installed("test")  # by itself, by another, by another extra
    assert not {"mypy", "sphinx"} & installed("test")
