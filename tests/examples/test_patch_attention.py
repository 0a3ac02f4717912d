"""The example runs to its table: untrained, the metric, IA3; and resumes without running anything again."""

from pathlib import Path

from workers import launching

ROOT = Path(__file__).resolve().parents[2]


def test_quick_run(tmp_path: Path) -> None:
    script = [ROOT / "examples" / "patch_attention.py", "--quick", "--out", str(tmp_path)]
    run = launching.run(*script, cwd=tmp_path)
    assert run.returncode == 0, run.stderr[-2000:]
    table = (tmp_path / "table.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:] if line.startswith("|")]
    assert [row[0] for row in rows] == ["no training", "GSSF both, block 8", "IA3 on query"]
    assert [row[1] for row in rows] == ["0", "20,736", "2,304"]
    log = tmp_path / "runs.jsonl"
    before = log.read_text()
    assert before.count("\n") == 3
    again = launching.run(*script, cwd=tmp_path)
    assert again.returncode == 0
    assert log.read_text() == before
