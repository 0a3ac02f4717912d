"""Tests mirror the package: gssf_plug/room/noun.py is tested in tests/room/test_noun.py.

A module may be tested elsewhere, through the door by which users come to it: ELSEWHERE says in which file. It may
shrink and not grow: a new module has a test file of its name.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MOST_ELSEWHERE = 11
ELSEWHERE = {
    "retrieval/data/digest": "retrieval/training/test_recipe",
    "retrieval/data/image_sources": "retrieval/data/test_cached_images",
    "retrieval/data/source_files": "retrieval/data/sets/test_every_set",
    "retrieval/embedders/sides": "retrieval/embedders/test_langchain",
    "retrieval/fitting/closed_form": "retrieval/fitting/test_candidates",
    "retrieval/fitting/comparison": "retrieval/test_fit",
    "retrieval/fitting/known_pairs": "retrieval/fitting/test_splits",
    "retrieval/fitting/measures": "retrieval/test_fit",
    "retrieval/fitting/report": "retrieval/test_fit",
    "retrieval/fitting/sides": "retrieval/test_fit",
    "retrieval/fitting/training": "retrieval/fitting/test_trials",
}


def unmirrored() -> set[str]:
    """Modules without a test file of their name, as paths below the package without their ending."""
    package = ROOT / "gssf_plug"
    modules = {
        path.relative_to(package)
        for path in package.rglob("*.py")
        if path.name != "__init__.py" and "modules" not in path.parts  # those of `evaluate` are tested as one
    }
    return {
        path.with_suffix("").as_posix()
        for path in modules
        if not (ROOT / "tests" / path.parent / f"test_{path.name}").is_file()
    }


def test_every_module_has_a_test_of_its_name_or_stands_in_the_list() -> None:
    assert unmirrored() == ELSEWHERE.keys()


def test_the_list_names_files_that_are_there_and_does_not_grow() -> None:
    assert not {name for name in ELSEWHERE.values() if not (ROOT / "tests" / f"{name}.py").is_file()}
    assert len(ELSEWHERE) <= MOST_ELSEWHERE
