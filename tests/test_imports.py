"""Importing gssf_plug is light, the public names stand, and both guards can fail."""

import subprocess
import sys

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
    "torch._dynamo",
)


SEARCH = "import torch; gssf_plug.metric.topk(None, torch.ones(2, 2), torch.ones(2, 2), 1)"
LIGHT = ("import gssf_plug", "import gssf_plug.metric", "import gssf_plug.files", SEARCH)


def loaded_by(*statements: str) -> list[set[str]]:
    """What of HEAVY a fresh interpreter has after each."""
    told = f"print(*[name for name in {HEAVY!r} if name in sys.modules])"
    code = "\n".join(["import sys", *(f"{statement}\n{told}" for statement in statements)])
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [set(line.split()) for line in result.stdout.splitlines()]


def test_import_is_light_and_the_check_can_fail() -> None:
    *light, last = loaded_by(*LIGHT, "import accelerate")
    assert light == [set()] * len(LIGHT)
    assert "accelerate" in last


def test_public_names() -> None:
    assert gssf_plug.__all__ == ["GSSFMetric", "__version__"]
    assert set(gssf_plug.metric.__all__) >= {"GSSFMetric", "topk"}
    assert all(hasattr(gssf_plug.metric, name) for name in gssf_plug.metric.__all__)
