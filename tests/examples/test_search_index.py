"""The example indexes once, searches under two metrics, and finds the same from the files it saved."""

from pathlib import Path

import faiss
from workers import launching

from gssf_plug import GSSFMetric

ROOT = Path(__file__).resolve().parents[2]


def test_quick_run(tmp_path: Path) -> None:
    script = [ROOT / "examples" / "search_index.py", "--quick", "--out", str(tmp_path)]
    run = launching.run(*script, cwd=tmp_path)
    assert run.returncode == 0, run.stderr[-2000:]
    rows = {cells[0]: cells[1:] for cells in map(cells_of, (tmp_path / "table.md").read_text().splitlines()[2:6])}
    assert list(rows) == ["Flat", "IVF64,Flat", "HNSW32", "SQ8"]
    assert rows["Flat"][:2] == ["100.0 %", "100.0 %"], "one exact index, right under both metrics"
    assert all(float(share.rstrip(" %")) > 50 for found in rows.values() for share in found[:2])
    metric = GSSFMetric.from_pretrained(tmp_path / "metric")
    assert metric.penalty() > 0
    for name in ("Flat", "IVF64-Flat", "HNSW32", "SQ8"):
        assert faiss.read_index(str(tmp_path / f"{name}.faiss")).d == metric.dim
    assert run.stdout.count("cosine:") == run.stdout.count("trained:") == 3


def cells_of(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]
