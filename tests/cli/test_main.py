"""The command line as a user types it: fit, evaluate, info; every fault with its place, and nothing half-written."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
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


def test_every_table_reads_alike(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = [line.split(",") for line in Path("pairs.csv").read_text().split()[1:]]
    numbers = [(int(query), int(document)) for query, document in pairs]
    Path("bare.csv").write_text("\n".join(f"{query},{document}" for query, document in numbers))
    Path("floats.csv").write_text("\n".join(["query,document", *(f"{q}.0,{d}.0" for q, d in numbers)]))  # had gaps
    Path("named.tsv").write_text("\n".join(["x\ty\tz", *(f"{d}\tnote\t{q}" for q, d in numbers)]))
    Path("pairs.jsonl").write_text("\n".join(json.dumps({"query": q, "document": d}) for q, d in numbers))
    columns = {"query": [q for q, _ in numbers], "document": [d for _, d in numbers]}
    parquet.write_table(pa.table(columns), "pairs.parquet")
    GSSFMetric(24, block_size=8).save_pretrained("neutral")
    said = {}
    for table in ("pairs.csv", "bare.csv", "floats.csv", "pairs.jsonl", "pairs.parquet", "named.tsv"):
        named = ["--columns", "z", "x"] if table == "named.tsv" else []
        assert main(["evaluate", "neutral", table, "--queries", "q.npy", "--documents", "d.npy", *named]) == 0
        said[table] = capsys.readouterr().out
    assert len({*said.values()}) == 1


FAULTS = {
    "number.csv": ("query,document\n0,1\n1,93x\n", "'93x' in line 3, column 'document'"),
    "outside.csv": ("query,document\n0,1\n500,1\n", "'500' in line 3, column 'query'"),
    "short.csv": ("query,document\n0,1\n1\n", "line 3"),
    "empty.csv": ("query,document\n", "holds no pair"),
    "quote.csv": ('query,document\n0,"1\n', "line"),
    "broken.jsonl": ('{"query": 0, "document": 1}\n{"query": 1,\n', "line 2, column"),
    "lacks.jsonl": ('{"query": 0, "document": 1}\n{"query": 1}\n', "lacks ['document'] in line 2"),
    "half.jsonl": ('{"query": 0.5, "document": 1}\n', "0.5 in line 1, column 'query'"),
    "false.parquet": ("query,document\n0,1\n", "no parquet file"),
    "pairs.txt": ("0 1\n", "is none of"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_and_nothing_is_written(name: str, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, expected = FAULTS[name]
    Path(name).write_text(text)
    before = sorted(path.name for path in data.iterdir())
    command = ["fit", name, "--queries", "q.npy", "--documents", "d.npy", "--out", "metric", "--report", "fit.md"]
    assert main([*command, *QUICK]) == 1
    said = capsys.readouterr()
    assert expected in said.err
    assert said.err.startswith("gssf-plug fit: ")
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert sorted(path.name for path in data.iterdir()) == before


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--queries", "q.npy"], "`--documents` must"),
        (["--queries", "q.npy", "--documents", "pairs.csv"], "is no .npy file"),
        (["--queries", "q.npy", "--documents", "flat.npy"], "not a floating-point matrix"),
        (["--queries", "q.npy", "--documents", "nan.npy"], "NaN or infinity in row 7, channel 3"),
        (["--queries", "missing.npy", "--documents", "d.npy"], "missing.npy"),
        (["--queries", "q.npy", "--documents", "d.npy", "--columns", "query", "answer"], "no column 'answer'"),
        (["--queries", "q.npy", "--documents", "d.npy", "--report", "no/such/fit.md"], "lies in no folder"),
        (["--queries", "q.npy", "--documents", "d.npy", "--report", "."], "is a folder"),
        (["--queries", "q.npy", "--documents", "d.npy", "--plot", "fit.xyz"], "'fit.xyz' is none of"),
        (["--queries", "q.npy", "--documents", "d.npy", "--measure", "map"], "mAP"),
    ],
)
def test_bad_vectors_and_options(
    given: list[str], expected: str, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save("flat.npy", np.zeros(5))
    spoilt = np.load("d.npy")
    spoilt[7, 3] = np.nan
    np.save("nan.npy", spoilt)
    assert main(["fit", "pairs.csv", "--out", "metric", *given, *([] if "--measure" in given else []), *QUICK]) == 1
    assert expected in capsys.readouterr().err
    assert not Path("metric").exists()


def test_a_file_in_the_place_of_the_folder_is_left_alone(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("metric").write_text("mine")
    assert main(["fit", "pairs.csv", "--queries", "q.npy", "--documents", "d.npy", "--out", "metric", *QUICK]) == 1
    assert Path("metric").read_text() == "mine"
    assert "is a file" in capsys.readouterr().err


def test_a_wrong_command_line_ends_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["fit", "pairs.csv", "--out", "metric", "--structures", "round"])
    assert ended.value.code == 2
    assert "neither diagonal, nor dense" in capsys.readouterr().err


def test_the_console_script_is_declared() -> None:
    pyproject = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text()
    assert 'gssf-plug = "gssf_plug.cli:main"' in pyproject
