"""The example runs to its table: across architectures, in an Accelerate loop."""

from pathlib import Path

import torch
from distil_image_encoder import SmallCNN
from distil_text_encoder import methods
from workers import launching

ROOT = Path(__file__).resolve().parents[2]


def test_quick_run(tmp_path: Path) -> None:
    script = [ROOT / "examples/distil_image_encoder.py", "--quick", "--out", str(tmp_path)]
    run = launching.run(*script, cwd=tmp_path)
    assert run.returncode == 0, run.stderr[-2000:]
    rows = [line.split("|")[1].strip() for line in run.stdout.splitlines() if line.startswith("| ")][1:]
    assert rows[0] == "none (classification)"
    assert rows[1:] == [method.name for method in methods()]
    assert run.stdout.count("over seeds, p = ") == 6
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == len(rows)


def test_the_student_is_small() -> None:
    student = SmallCNN()
    assert student(torch.randn(2, 3, 32, 32)).shape == (2, 128)
    assert sum(parameter.numel() for parameter in student.parameters()) < 350_000
