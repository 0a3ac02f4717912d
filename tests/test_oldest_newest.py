"""The floors that `oldest_newest.py` pins are those of pyproject.toml, and one without a version is refused."""

import pytest
from oldest_newest import floors, pyproject


def test_every_dependency_has_a_floor() -> None:
    found = floors(pyproject())
    assert {"torch", "transformers", "accelerate", "datasets", "sentence-transformers", "faiss-cpu"} <= found.keys()
    assert "pytest" not in found, "tools are not pinned"
    assert all(floor[0].isdigit() for floor in found.values())


def test_forms_of_a_requirement() -> None:
    text = """
[project]
dependencies = ["a>=1.2", "b[x,y]>=3", "c == 4.0"]
[project.optional-dependencies]
one = ["gssf-plug[two]", "d-e>=5, <6"]
test = ["f"]
"""
    assert floors(text) == {"a": "1.2", "b": "3", "c": "4.0", "d-e": "5"}
    with pytest.raises(ValueError, match="'g' names no floor: write g>=version"):
        floors(text.replace('"a>=1.2"', '"g"'))
