"""Which tests are slow, by measurement: `tests/slow_tests.txt` names them, and `tests/conftest.py` marks them.

    pytest -n logical --dist loadfile --no-loadscope-reorder --seconds=seconds.jsonl
    python tests/tools/slow.py seconds.jsonl            # writes the list, prints the slowest twenty
    pytest -n logical --dist loadfile --no-loadscope-reorder -m "not slow" --seconds=quick.jsonl
    python tests/tools/slow.py seconds.jsonl quick.jsonl        # with those that now pay for what slow ones had made

A test function is listed where its cases take more than LIMIT seconds on average, so that all others,
`-m "not slow"`, take a minute on two quiet cores. Processes that share the suite by files begin with the longest file.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

LIST = Path(__file__).resolve().parents[1] / "slow_tests.txt"
LIMIT = 0.1
COLLECTED = pytest.StashKey[list[str]]()  # ids of all tests of the files that were asked for
HEAD = "# seconds and name of test functions that take more than {} s for each case; written by tests/tools/slow.py\n"


class Stopwatch:
    """Plugin that writes the seconds of every test, with its fixtures, as lines of JSON."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("w", encoding="utf-8")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.file.write(json.dumps([report.nodeid, report.duration]) + "\n")

    def pytest_unconfigure(self) -> None:
        self.file.close()


def function_of(nodeid: str) -> str:
    """The test function, without the parameters of a case."""
    return nodeid.partition("[")[0]


def file_of(nodeid: str) -> str:
    """The file of a test."""
    return nodeid.partition("::")[0]


def read_list(path: Path = LIST) -> dict[str, float]:
    """Seconds of all cases together, by test function."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return {name: float(seconds) for seconds, name in (line.split(maxsplit=1) for line in lines)}


def read_seconds(path: Path) -> dict[str, float]:
    """Seconds of every test, from a stopwatch's file."""
    seconds: dict[str, float] = defaultdict(float)
    for line in path.read_text(encoding="utf-8").splitlines():
        nodeid, duration = json.loads(line)
        seconds[nodeid] += duration  # set-up, call and tear-down
    return dict(seconds)


def slow_functions(seconds: Mapping[str, float], limit: float = LIMIT) -> dict[str, float]:
    """Those whose cases take more than `limit` seconds on average, with their seconds in all; slowest first."""
    cases: dict[str, list[float]] = defaultdict(list)
    for nodeid, taken in seconds.items():
        cases[function_of(nodeid)].append(taken)
    slow = {name: sum(taken) for name, taken in cases.items() if sum(taken) > limit * len(taken)}
    return dict(sorted(slow.items(), key=lambda item: -item[1]))


def unknown(listed: Iterable[str], collected: Iterable[str]) -> list[str]:
    """Listed functions whose file was collected and holds no such function any more."""
    functions = {function_of(nodeid) for nodeid in collected}
    files = {file_of(name) for name in functions}
    return [name for name in listed if file_of(name) in files and name not in functions]


def longest_file_first(items: list[pytest.Item], listed: Mapping[str, float]) -> None:
    """Order tests by the seconds of their file, those of one file as they were."""
    seconds: dict[str, float] = defaultdict(float)
    for name, taken in listed.items():
        seconds[file_of(name)] += taken
    items.sort(key=lambda item: -seconds[file_of(item.nodeid)])


def main() -> None:
    """Write the list and print the slowest twenty."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seconds", type=Path, nargs="+", help="what --seconds= wrote, a run of the whole suite first")
    seconds: dict[str, float] = {}
    for path in parser.parse_args().seconds:
        for nodeid, taken in read_seconds(path).items():
            seconds[nodeid] = max(taken, seconds.get(nodeid, 0.0))
    slow = slow_functions(seconds)
    LIST.write_text(
        HEAD.format(LIMIT) + "".join(f"{taken:.1f} {name}\n" for name, taken in slow.items()), encoding="utf-8"
    )
    quick = sum(taken for nodeid, taken in seconds.items() if function_of(nodeid) not in slow)
    print(f"{len(seconds)} tests, {sum(seconds.values()):.0f} s; without {len(slow)} slow functions {quick:.0f} s")
    for nodeid, taken in sorted(seconds.items(), key=lambda item: -item[1])[:20]:
        print(f"{taken:5.1f}  {nodeid}")


if __name__ == "__main__":
    main()
