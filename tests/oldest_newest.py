"""Run the suite with the oldest supported and with the newest versions of our dependencies, by one command.

    python tests/oldest_newest.py                                   # both, the whole suite; about an hour on two cores
    python tests/oldest_newest.py --only oldest --tests tests/metric

"oldest" pins every `name>=floor` of the dependencies and runtime extras in pyproject.toml to exactly that floor,
so a floor that nobody can install, or that the suite fails with, is found. "newest" upgrades all of them to the newest
releases; torch stays what --torch says, as in the README, since its default wheels bring gigabytes of CUDA.
Environments lie in --folder and are used again. Ends with the versions that ran, and fails where a suite failed.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = {"test", "docs", "dev"}  # extras for working on the library: their versions are not promised
SHOWN = ("torch", "transformers", "accelerate", "datasets", "evaluate", "sentence-transformers", "numpy", "Pillow")


def floors(pyproject: str) -> dict[str, str]:
    """Name and floor of every dependency and of what the runtime extras add.

    Raises:
        ValueError: a dependency without a floor, which nobody could test.
    """
    project = tomllib.loads(pyproject)["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *(line for name in extras.keys() - TOOLS for line in extras[name])]
    found = {}
    for line in asked:
        name, _, rest = re.fullmatch(r"\s*([\w.-]+)(\[[^\]]*\])?\s*(.*)", line).groups()
        if name == "gssf-plug":
            continue
        floor = re.match(r"(?:>=|==)\s*([\w.]+)", rest)
        if floor is None:
            raise ValueError(f"{line!r} names no floor: write {name}>=version")
        found[name] = floor[1]
    return found


def python_of(environment: Path) -> Path:
    """The interpreter of a virtual environment."""
    return environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def prepare(which: str, folder: Path, torch: str) -> Path:
    """An environment with this checkout and the oldest or newest versions."""
    environment = folder / f".venv-{which}"
    if not python_of(environment).exists():
        venv.create(environment, with_pip=True)
    wanted = [] if which == "newest" else [f"{name}=={floor}" for name, floor in floors(pyproject()).items()]
    constraints = environment / "constraints.txt"
    constraints.write_text("\n".join([*wanted, *([torch] if which == "newest" else [])]) + "\n")
    upgrade = ["--upgrade", "--upgrade-strategy", "eager"] if which == "newest" else []
    pip = [python_of(environment), "-m", "pip", "install", "--quiet", *upgrade, "--constraint", constraints]
    subprocess.run([*pip, "-e", f"{ROOT}[test]", *wanted], check=True, cwd=ROOT)
    return python_of(environment)


def pyproject() -> str:
    """The text of pyproject.toml."""
    return (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def run_suite(python: Path, tests: list[str]) -> bool:
    """Does the suite, or a part of it, pass."""
    return subprocess.run([python, "-m", "pytest", "-q", *tests], cwd=ROOT, check=False).returncode == 0


def versions(python: Path) -> dict[str, str]:
    """What is installed there."""
    listed = subprocess.run([python, "-m", "pip", "list", "--format=json"], capture_output=True, check=True).stdout
    installed = {entry["name"].lower(): entry["version"] for entry in json.loads(listed)}
    return {name: installed[name.lower()] for name in SHOWN if name.lower() in installed}


def main() -> None:
    """Prepare, run, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("oldest", "newest"))
    parser.add_argument("--tests", nargs="*", default=[], help="default: the whole suite")
    parser.add_argument("--folder", type=Path, default=ROOT, help="where the environments are kept")
    parser.add_argument("--torch", default="torch==2.13.*", help="constraint on torch in 'newest'")
    options = parser.parse_args()
    passed = {}
    for which in [options.only] if options.only else ["oldest", "newest"]:
        try:
            python = prepare(which, options.folder, options.torch)
        except subprocess.CalledProcessError:
            print(f"{which}: FAILED to install, as pip says above: these versions do not go together", flush=True)
            passed[which] = False
            continue
        passed[which] = run_suite(python, options.tests)
        said = ", ".join(f"{name} {version}" for name, version in versions(python).items())
        print(f"{which}: {'passed' if passed[which] else 'FAILED'} with {said}", flush=True)
    sys.exit(0 if all(passed.values()) else 1)


if __name__ == "__main__":
    main()
