"""What would be published: wheel and sdist, built, checked, and installed where nothing else of the repository is."""

import importlib.metadata
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

import gssf_plug

ROOT = Path(__file__).resolve().parent.parent
VERSION = gssf_plug.__version__


def run(*command: str | Path, folder: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist of this tree, and the wheel that was built from that sdist: `python -m build`, without a network."""
    folder = tmp_path_factory.mktemp("dist")
    run("-m", "build", "--no-isolation", "--outdir", folder, ROOT, folder=folder)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (found,) = built.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def sdist(built: Path) -> Path:
    (found,) = built.glob("*.tar.gz")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("installed")
    pip = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check")
    run(*pip, "--target", target, wheel, folder=target)
    return target


def members(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_names_and_version(wheel: Path, sdist: Path) -> None:
    assert wheel.name == f"gssf_plug-{VERSION}-py3-none-any.whl"
    assert sdist.name == f"gssf_plug-{VERSION}.tar.gz"


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = members(wheel)
    assert {name.split("/")[0] for name in names} == {"gssf_plug", f"gssf_plug-{VERSION}.dist-info"}
    assert "gssf_plug/py.typed" in names
    assert f"gssf_plug-{VERSION}.dist-info/licenses/LICENSE" in names
    tracked = run_git("ls-files", "gssf_plug")
    assert {name for name in names if name.startswith("gssf_plug/")} >= set(tracked)
    assert not [
        name for name in names if re.search(r"(^|/)(tests?|examples|docs|__pycache__)/|\.parquet$|\.pyc$", name)
    ]
    assert wheel.stat().st_size < 600_000


def run_git(*arguments: str) -> list[str]:
    listed = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return listed.splitlines()


def test_the_sdist_holds_what_it_takes_to_build_and_test(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "PKG-INFO", "gssf_plug/py.typed", "tests/conftest.py"} <= names
    assert not [name for name in names if name.startswith("examples/data")], "the drawings stay in the repository"
    assert sdist.stat().st_size < 6_000_000


def test_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        found = message_from_bytes(archive.read(f"gssf_plug-{VERSION}.dist-info/METADATA"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert found["Version"] == VERSION
    assert found["License-Expression"] == "Apache-2.0"
    assert found["Requires-Python"] == project["requires-python"]
    assert set(found.get_all("Provides-Extra")) == set(project["optional-dependencies"])
    base = [line for line in found.get_all("Requires-Dist") if "extra ==" not in line]
    assert len(base) == len(project["dependencies"])
    payload = found.get_payload()
    assert isinstance(payload, str)
    assert payload.strip().startswith("# gssf-plug")


def test_twine_finds_nothing_to_say(wheel: Path, sdist: Path) -> None:
    said = run("-m", "twine", "check", "--strict", wheel, sdist, folder=wheel.parent)
    assert said.count("PASSED") == 2


def test_the_version_stands_in_one_place() -> None:
    written = [
        path
        for path in run_git("ls-files", "*.py", "*.toml", "*.cfg")
        if re.search(rf"(?m)^\s*(__version__|version)\s*=\s*[\"']{re.escape(VERSION)}[\"']", (ROOT / path).read_text())
    ]
    assert written == ["gssf_plug/__init__.py"]
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dynamic"] == ["version"]


def test_it_works_where_nothing_else_of_the_repository_is(installed: Path, tmp_path: Path) -> None:
    """Imported out of the wheel, from an empty folder: every room, a metric trained one step, saved and loaded."""
    program = """
import importlib, pathlib, pkgutil, sys
import torch
import gssf_plug
assert pathlib.Path(gssf_plug.__file__).parent.parent == pathlib.Path(sys.argv[1]), gssf_plug.__file__
assert gssf_plug.__version__ == sys.argv[2]
for _, name, package in pkgutil.walk_packages(gssf_plug.__path__, "gssf_plug."):
    if not name.startswith("gssf_plug.evaluation.modules."):  # scripts of evaluate, loaded by path
        importlib.import_module(name)
metric = gssf_plug.GSSFMetric(8, block_size=4)
metric(torch.randn(3, 8), torch.randn(5, 8)).sum().backward()
metric.save_pretrained("metric")
assert torch.equal(gssf_plug.GSSFMetric.from_pretrained("metric").matrix(), metric.matrix())
print(gssf_plug.__file__)
"""
    said = run("-c", program, str(installed), VERSION, folder=tmp_path, PYTHONPATH=str(installed))
    assert said.strip() == str(installed / "gssf_plug" / "__init__.py")


def test_installed_metadata_agrees(installed: Path) -> None:
    (found,) = importlib.metadata.distributions(name="gssf-plug", path=[str(installed)])
    assert found.version == VERSION


def test_evaluate_modules_are_in_the_wheel(wheel: Path) -> None:
    scripts = [name for name in members(wheel) if re.fullmatch(r"gssf_plug/evaluation/modules/(\w+)/\1\.py", name)]
    assert len(scripts) == 3
