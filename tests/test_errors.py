"""The library's exceptions: their texts, who else catches them, and their way out of another process."""

import copy
import pickle
from pathlib import Path

import pytest

from gssf_plug.errors import ArgumentError, CheckpointError, DataError, GSSFError, near_matches

ERRORS = {
    "argument": ArgumentError("k", "be at least 1", 0, "Ask for more."),
    "checkpoint": CheckpointError(Path("a/b"), "is missing", "Save it again."),
    "data": DataError("a/b", "is missing", "Unpack it again."),
    "plain": GSSFError("something"),
}


def test_a_message_says_what_came_the_rule_and_the_remedy() -> None:
    assert str(ERRORS["argument"]) == "`k` must be at least 1, but got 0. Ask for more."
    assert str(ERRORS["checkpoint"]) == "'a/b' is missing. Save it again."
    assert str(ERRORS["data"]) == "'a/b' is missing. Unpack it again."


def test_ordinary_handlers_catch_them_and_a_damaged_save_is_told_from_missing_data() -> None:
    for name in ("argument", "checkpoint", "data"):
        assert isinstance(ERRORS[name], ValueError | GSSFError)
        assert isinstance(ERRORS[name], ValueError)
        assert isinstance(ERRORS[name], GSSFError)
    assert not isinstance(ERRORS["data"], CheckpointError)
    assert not isinstance(ERRORS["checkpoint"], DataError)


@pytest.mark.parametrize("name", ERRORS)
def test_they_come_whole_out_of_another_process(name: str) -> None:
    error = ERRORS[name]
    error.note = "kept"  # type: ignore[attr-defined]
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is type(error)
        assert str(twin) == str(error)
        assert vars(twin) == vars(error)


def test_near_names_are_offered_or_all_of_them() -> None:
    names = ["psd", "symmetric"]
    assert near_matches("symetric", names) == "Did you mean 'symmetric'?"
    assert near_matches("zzz", names) == "Choose from 'psd', 'symmetric'."
    many = [f"layer.{number}" for number in range(9)]
    assert near_matches("layer", many, most=2).count("layer.") == 2
    assert near_matches("psd", iter(names)) == "Did you mean 'psd'?"
