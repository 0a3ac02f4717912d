"""What each command does, as functions of its options: a text to print, or an error before anything is written."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from retrieval.fitting.noisy_channels import noisy_channels

from gssf_plug import GSSFMetric
from gssf_plug.cli import commands
from gssf_plug.errors import GSSFError
from gssf_plug.evaluation import document_ranking


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """q.npy, d.npy and pairs.csv in the working folder, and vectors that are none."""
    monkeypatch.chdir(tmp_path)
    queries, documents, pairs = noisy_channels()
    np.save("q.npy", queries.numpy())
    np.save("d.npy", documents.numpy())
    Path("pairs.csv").write_text("".join(f"{query},{document}\n" for query, document in pairs.tolist()))
    np.save("flat.npy", np.zeros(5))
    spoilt = documents.numpy().copy()
    spoilt[7, 3] = np.nan
    np.save("nan.npy", spoilt)
    return tmp_path


def options(**changes: Any) -> Namespace:
    """What the parser gives for `fit pairs.csv --queries q.npy --documents d.npy --out metric`, a quick one."""
    given: dict[str, Any] = {
        "pairs": Path("pairs.csv"), "queries": Path("q.npy"), "documents": Path("d.npy"), "encoder": None,
        "columns": None, "cache": Path("cache"), "no_progress": True, "out": Path("metric"), "report": None,
        "plot": None, "validation": 0.2, "measure": "mAP", "loss": "softmax", "patience": 1, "max_epochs": 2,
        "structures": [{"terms": ("diagonal",)}], "batch_size": 256, "seed": 0, "device": None,
    }  # fmt: skip
    return Namespace(**{**given, **changes})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"documents": None}, "`--documents` must"),
        ({"documents": Path("pairs.csv")}, "is no .npy file"),
        ({"documents": Path("flat.npy")}, "not a floating-point matrix"),
        ({"documents": Path("nan.npy")}, "NaN or infinity in row 7, channel 3"),
        ({"queries": Path("missing.npy")}, "missing.npy"),
        ({"columns": ["query", "answer"]}, "no column 'query'"),
        ({"report": Path("no/such/fit.md")}, "lies in no folder"),
        ({"report": Path()}, "is a folder"),
        ({"plot": Path("fit.xyz")}, "'fit.xyz' is none of"),
        ({"measure": "map"}, "mAP"),
        ({"out": Path("pairs.csv")}, "'pairs.csv' is a file"),
        ({"encoder": "some/model"}, "`--queries` must not be given with --encoder"),
    ],
)
def test_what_cannot_be_fitted_is_named_and_nothing_is_written(
    changes: dict[str, Any], expected: str, data: Path
) -> None:
    before = {path.name: path.stat().st_size for path in data.iterdir()}
    with pytest.raises((GSSFError, OSError), match=expected):
        commands.fit(options(**changes))
    assert {path.name: path.stat().st_size for path in data.iterdir()} == before


def test_evaluate_prints_every_measure_of_cosine_and_of_the_metric(data: Path) -> None:
    metric = GSSFMetric(24, block_size=8)
    torch.nn.init.normal_(metric.structures["diagonal"].weight)
    metric.save_pretrained("metric")
    said = commands.evaluate(options(metric=Path("metric"), ks=[1, 5])).splitlines()
    assert said[:2] == ["| measure | cosine | metric |", "|---|---:|---:|"]
    queries, documents, pairs = noisy_channels()
    right = {name: document_ranking(queries, documents, pairs, m, (1, 5)) for name, m in (("c", None), ("m", metric))}
    assert said[2:] == [f"| {key} | {value:.2f} | {right['m'][key]:.2f} |" for key, value in right["c"].items()]


def test_info_says_what_a_metric_is(tmp_path: Path) -> None:
    GSSFMetric(8, block_size=4, constraint="psd").save_pretrained(tmp_path)
    said = dict(line.split(maxsplit=1) for line in commands.info(Namespace(metric=tmp_path)).splitlines())
    assert said["width"] == "8"
    assert said["terms"] == "diagonal + block_diagonal"
    assert said["blocks"] == "2 of 4×4"
    assert said["parameters"] == "40"
    assert said["constraint"] == "psd"
    assert said["distance"].startswith("from cosine  0 (Frobenius")
    weights = (tmp_path / "model.safetensors").stat().st_size
    assert f"model.safetensors {weights:,} B" in said["files"]
