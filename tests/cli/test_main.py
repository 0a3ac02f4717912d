"""The command line as a user types it: fit, evaluate, info; every fault with its place, and nothing half-written."""

from pathlib import Path

import numpy as np
import pytest
from retrieval.fitting.noisy_channels import noisy_channels

from gssf_plug import GSSFMetric
from gssf_plug.cli import main

QUICK = ["--no-progress", "--structures", "diagonal", "--loss", "softmax", "--max-epochs", "20"]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """q.npy, d.npy and pairs.csv in the working folder."""
    monkeypatch.chdir(tmp_path)
    queries, documents, pairs = noisy_channels()
    np.save("q.npy", queries.half().numpy())
    np.save("d.npy", documents.numpy())
    lines = [f"{query},{document}" for query, document in pairs.tolist()]
    Path("pairs.csv").write_text("\n".join(["query,document", *lines]) + "\n")
    return tmp_path


def test_fit_evaluate_info(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sides = ["--queries", "q.npy", "--documents", "d.npy"]
    command = ["fit", "pairs.csv", *sides, "--out", "metric", "--report", "fit.md", "--plot", "fit.png", *QUICK]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "| cosine | 0 |" in said
    assert "Taken: terms=diagonal" in said
    assert Path("fit.md").read_text().strip() in said
    assert Path("fit.png").stat().st_size > 10_000
    assert "Taken: terms=diagonal" in Path("metric/README.md").read_text()
    assert GSSFMetric.from_pretrained("metric").terms == ("diagonal",)

    assert main(["evaluate", "metric", "pairs.csv", *sides]) == 0
    rows = [line.split("|")[1:4] for line in capsys.readouterr().out.splitlines()[2:]]
    values = {name.strip(): (float(cosine), float(metric)) for name, cosine, metric in rows}
    assert {"accuracy@1", "recall@10", "ndcg@10", "mAP"} <= {*values}
    assert values["mAP"][1] > values["mAP"][0] + 2

    assert main(["info", "metric"]) == 0
    said = capsys.readouterr().out
    assert "width                 24" in said
    assert "model.safetensors" in said


def test_a_fault_is_named_and_nothing_is_written(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("number.csv").write_text("query,document\n0,1\n1,93x\n")
    before = sorted(path.name for path in data.iterdir())
    command = ["fit", "number.csv", "--queries", "q.npy", "--documents", "d.npy", "--out", "metric", "--report", "f.md"]
    assert main([*command, *QUICK]) == 1
    said = capsys.readouterr()
    assert "'93x' in line 3, column 'document'" in said.err
    assert said.err.startswith("gssf-plug fit: ")
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert sorted(path.name for path in data.iterdir()) == before


def test_a_wrong_command_line_ends_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["fit", "pairs.csv", "--out", "metric", "--structures", "round"])
    assert ended.value.code == 2
    assert "neither diagonal, nor dense" in capsys.readouterr().err


def test_the_console_script_is_declared() -> None:
    pyproject = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text()
    assert 'gssf-plug = "gssf_plug.cli:main"' in pyproject
