"""Both examples of one tower run to their tables and pictures, and go on where they were stopped."""

import json
import subprocess
from pathlib import Path

import pytest
from workers import launching

from gssf_plug.metric import GSSFMetric

ROOT = Path(__file__).resolve().parents[2]
ROWS = ["cosine", "cosine + scale", "GSSF Diag", "GSSF B-Diag, block 16", "GSSF both, block 16", "full matrix"]
RERANKED = ["GSSF both, block 16, re-ranked", "cosine, re-ranked"]
FROZEN = [row for row in ROWS if row != "cosine + scale"]
EXAMPLES = {
    "re_identification": ("mAP", ["ranked.png", "cmc.png"], [*ROWS, *RERANKED]),
    "fine_grained_retrieval": ("MAP@R", ["ranked.png", "learned.png"], [*FROZEN, *(f"head + {row}" for row in ROWS)]),
}


def run_example(name: str, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    script = [ROOT / "examples" / f"{name}.py", "--quick", "--output", str(folder), *options]
    return launching.run(*script, cwd=folder)


@pytest.mark.parametrize("name", EXAMPLES)
def test_quick_run(name: str, tmp_path: Path) -> None:
    measure, pictures, rows = EXAMPLES[name]
    run = run_example(name, tmp_path)
    assert run.returncode == 0, run.stderr[-2000:]
    table = (tmp_path / "table.md").read_text()
    lines = [line for line in table.splitlines() if line.startswith("| ")]
    assert measure in lines[0]
    assert [line.split("|")[1].strip() for line in lines[1:]] == rows
    assert table.strip() in run.stdout
    for picture in pictures:
        assert (tmp_path / picture).read_bytes()[:4] == b"\x89PNG"
    results = json.loads((tmp_path / "results.json").read_text())
    full = GSSFMetric(256, terms=("dense",), constraint="symmetric")
    assert {result["parameters"] for result in results} == {
        0,
        256,
        4096,
        4352,
        sum(p.numel() for p in full.parameters()),
    }
    assert all(5 < result[measure] < 100 for result in results)
    (tmp_path / "results.json").write_text(json.dumps(results[:-1]))  # as if stopped before the last run was recorded
    again = run_example(name, tmp_path, "--resume")
    assert again.returncode == 0, again.stderr[-2000:]
    repeated = json.loads((tmp_path / "results.json").read_text())[-1]
    assert {**repeated, "seconds": 0} == {**results[-1], "seconds": 0}
