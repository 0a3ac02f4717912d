"""The example runs to its table: every row, and patched, merged, saved and read again; without weights it says how."""

import json
from pathlib import Path

from workers import launching

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = [ROOT / "examples" / "patch_decoder.py"]


def test_quick_run(tmp_path: Path) -> None:
    run = launching.run(*SCRIPT, "--quick", "--out", str(tmp_path), cwd=tmp_path)
    assert run.returncode == 0, run.stderr[-2000:]
    rows = {record["name"]: record for record in map(json.loads, (tmp_path / "runs.jsonl").read_text().splitlines())}
    assert list(rows) == [
        "no training", "GSSF Diag", "IA3 on q_proj", "GSSF B-Diag 8", "LoRA r=4 on q_proj",
        "GSSF B-Diag 8 in the score",
    ]  # fmt: skip
    counts = [row["parameters"] for row in rows.values()]
    assert counts == [0, 128, 128, 1024, 1024, 1024]
    plain = rows["no training"]["likelihood"]
    for name, row in rows.items():
        assert (row["likelihood"] != plain) == (row["steps"] > 0), name
    for name in ("GSSF Diag", "GSSF B-Diag 8"):
        assert rows[name]["cache"]
        assert rows[name]["same tokens"]
        assert rows[name]["merged"] < 1e-5
    score = rows["GSSF B-Diag 8 in the score"]
    assert score["cache"]
    assert score["merged"] is None
    assert all((tmp_path / f"GSSF_B-Diag_8_{part}.png").stat().st_size > 5000 for part in ("heads", "maps"))
    assert "| GSSF Diag | 128 |" in (tmp_path / "table.md").read_text()


def test_without_the_weights_it_says_how_to_get_them(tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("one\n")
    missing = ["--model", str(tmp_path / "nowhere"), "--texts", str(texts), "--out", str(tmp_path)]
    run = launching.run(*SCRIPT, *missing, cwd=tmp_path)
    assert run.returncode == 1
    assert "Run `python examples/data/build_smollm2.py`" in run.stderr
    run = launching.run(*SCRIPT, "--texts", "nowhere.txt", cwd=tmp_path)
    assert run.returncode == 2
    assert "nowhere.txt is missing: run `python examples/data/build_smollm2.py`" in run.stderr
