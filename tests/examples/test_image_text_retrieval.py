"""The main job runs from one command, quickly, and can be stopped and resumed."""

import json
from pathlib import Path

from workers import launching

EXAMPLE = Path(__file__).parents[2] / "examples" / "image_text_retrieval.py"


def run(folder, *options):
    environment = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TQDM_MININTERVAL": "5"}
    done = launching.run(EXAMPLE, "--quick", "--output", str(folder), *options, cwd=folder, environment=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_quick(tmp_path):
    printed = run(tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    names = ["cosine", "cosine + scale", "GSSF Diag", "GSSF both, block 16", "GSSF B-Diag 64"]
    assert [result["variant"] for result in results] == names
    assert [result["parameters"] for result in results] == [0, 0, 256, 256 * 17, 256 * 64]
    for name, result in zip(names, results, strict=True):
        row = next(line for line in printed.splitlines() if line.startswith(f"{name}  "))
        assert f"{result['rsum']:.1f}" in row
        parts = [result[f"{way}_R@{k}"] for way in ("i2t", "t2i") for k in (1, 5, 10)]
        assert abs(sum(parts) - result["rsum"]) < 1e-6
    for picture in ("retrieved.png", "learned.png", "training.png"):
        assert (tmp_path / picture).read_bytes()[:4] == b"\x89PNG"
    # a run that was stopped after three of five goes on with the fourth, and comes to the same numbers
    (tmp_path / "results.json").write_text(json.dumps(results[:3]))
    run(tmp_path, "--resume")
    again = json.loads((tmp_path / "results.json").read_text())
    assert [{**result, "seconds": 0} for result in again] == [{**result, "seconds": 0} for result in results]
