"""Importing gssf_plug is light, the public names stand, and both guards can fail."""

import subprocess
import sys

import pytest

import gssf_plug
import gssf_plug.metric

HEAVY = (
    "transformers",
    "accelerate",
    "datasets",
    "evaluate",
    "matplotlib",
    "faiss",
    "pytorch_metric_learning",
    "pandas",
)


def loaded_by(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*[name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


@pytest.mark.parametrize("statement", ["import gssf_plug", "import gssf_plug.metric", "import gssf_plug.files"])
def test_import_is_light(statement: str) -> None:
    assert loaded_by(statement) == set()


def test_the_check_can_fail() -> None:
    assert "accelerate" in loaded_by("import gssf_plug, accelerate")


def test_public_names() -> None:
    assert gssf_plug.__all__ == ["GSSFMetric", "__version__"]
    assert set(gssf_plug.metric.__all__) >= {"GSSFMetric", "topk"}
    assert all(hasattr(gssf_plug.metric, name) for name in gssf_plug.metric.__all__)
