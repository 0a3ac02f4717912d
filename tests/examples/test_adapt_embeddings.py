"""The example runs to its table, saves a metric that loads, and searches."""

from pathlib import Path

from PIL import Image
from workers import launching

from gssf_plug import GSSFMetric

ROOT = Path(__file__).resolve().parents[2]


def test_quick_run(tmp_path: Path) -> None:
    script = [ROOT / "examples" / "adapt_embeddings.py", "--quick", "--out", str(tmp_path)]
    run = launching.run(*script, cwd=tmp_path)
    assert run.returncode == 0, run.stderr[-2000:]
    table = (tmp_path / "table.md").read_text()
    rows = [line.split("|")[1].strip() for line in table.splitlines()[2:] if line.startswith("|")]
    assert rows[:2] == ["cosine", "closed form"]
    assert {"diagonal, softmax", "blocks of 64, hinge", "dense, softmax"} <= {*rows}
    assert rows[-1] == "fit_metric's choice"
    assert "Taken: " in run.stdout
    assert run.stdout.count("validation queries among") == 1
    assert GSSFMetric.from_pretrained(tmp_path / "metric").penalty() > 0
    for picture in ("retrieved.png", "learned.png", "fit.png"):
        with Image.open(tmp_path / picture) as image:
            assert image.width > 600
    assert run.stdout.count("before:") == run.stdout.count("after:") == 5
