"""The measured list of slow tests: it names tests that are there, marks them, and puts the longest files first."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tools import slow

ROOT = Path(__file__).resolve().parent.parent


def test_the_list_names_tests_that_are_there(request: pytest.FixtureRequest) -> None:
    assert not slow.unknown(slow.read_list(), request.config.stash[slow.COLLECTED]), "run tests/tools/slow.py again"
    assert not {name for name in slow.read_list() if not (ROOT / slow.file_of(name)).is_file()}


def test_a_test_that_went_is_found() -> None:
    collected = ["tests/a.py::test_one[1]", "tests/a.py::TestTwo::test_two", "tests/c.py::test_one"]
    listed = ["tests/a.py::test_one", "tests/a.py::TestTwo::test_two", "tests/a.py::test_two", "tests/b.py::test_one"]
    assert slow.unknown(listed, collected) == ["tests/a.py::test_two"]


def test_the_slow_ones_of_the_list_are_marked_and_these_are_not(request: pytest.FixtureRequest) -> None:
    listed = slow.read_list()
    assert listed
    assert request.node.nodeid not in listed
    for item in request.session.items:
        assert (item.get_closest_marker("slow") is not None) == (slow.function_of(item.nodeid) in listed)


def test_what_is_measured_is_listed_slowest_first_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "seconds.jsonl"
    watch = slow.Stopwatch(path)
    durations = [("a.py::test_x[1]", 0.3), ("a.py::test_x[2]", 0.1), ("a.py::test_y", 0.1), ("b.py::test_z", 0.2)]
    for nodeid, duration in [*durations, ("b.py::test_z", 5.0), ("a.py::test_y", 0.0)]:  # set-up, then the call
        watch.pytest_runtest_logreport(cast(Any, SimpleNamespace(nodeid=nodeid, duration=duration)))
    watch.pytest_unconfigure()
    seconds = slow.read_seconds(path)
    assert seconds == {"a.py::test_x[1]": 0.3, "a.py::test_x[2]": 0.1, "a.py::test_y": 0.1, "b.py::test_z": 5.2}
    assert json.loads(path.read_text().splitlines()[0]) == ["a.py::test_x[1]", 0.3]
    found = slow.slow_functions(seconds, limit=0.15)
    assert list(found) == ["b.py::test_z", "a.py::test_x"]
    assert found == pytest.approx({"b.py::test_z": 5.2, "a.py::test_x": 0.4})


def test_files_that_take_longest_come_first_and_keep_their_order() -> None:
    names = ["a.py::test_1", "b.py::test_1", "b.py::test_2", "c.py::test_1"]
    items = cast(Any, [SimpleNamespace(nodeid=name) for name in names])
    slow.longest_file_first(items, {"b.py::test_2": 3.0, "c.py::test_1": 1.0, "c.py::test_9": 2.5})
    assert [item.nodeid for item in items] == ["c.py::test_1", "b.py::test_1", "b.py::test_2", "a.py::test_1"]
