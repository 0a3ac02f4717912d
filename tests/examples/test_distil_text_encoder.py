"""The example runs to its table, resumes from its log, and its measures and paired test are what they say."""

import json
from pathlib import Path

import pytest
import torch
from distil_text_encoder import methods
from scipy.stats import spearmanr
from shared.agreement import average_precisions, row_correlations, shared_neighbours
from shared.runs import append, difference, finished, render
from workers import launching

ROOT = Path(__file__).resolve().parents[2]


def test_quick_run_and_resume(tmp_path: Path) -> None:
    script = [ROOT / "examples/distil_text_encoder.py", "--quick", "--out", str(tmp_path)]
    run = launching.run(*script, cwd=tmp_path)
    assert run.returncode == 0, run.stderr[-2000:]
    rows = [line.split("|")[1].strip() for line in run.stdout.splitlines() if line.startswith("| ")][1:]
    assert rows[:3] == ["none (name-sentence pairs)", "FitNets", "cosine"]
    assert rows[1:] == [method.name for method in methods()]
    assert run.stdout.count("over seeds, p = ") == 6
    log = tmp_path / "runs.jsonl"
    before = log.read_text()
    assert [json.loads(line)["name"] for line in before.splitlines()] == rows
    log.write_text("\n".join(before.splitlines()[:-1]) + "\n" + before.splitlines()[-1][:50] + "\n")
    again = launching.run(*script, cwd=tmp_path)
    assert again.returncode == 0, again.stderr[-2000:]
    kept = log.read_text().splitlines()
    assert kept[: len(rows) - 1] == before.splitlines()[:-1]
    assert len(kept) == len(rows) + 1


TABLE = """
import argparse, os
from pathlib import Path
from shared.runs import add_options, fill

parser = argparse.ArgumentParser()
add_options(parser, Path("out"))
options = parser.parse_args()

def run(name, seed):
    return {"value": len(name) + seed, "part": options.part, "threads": os.environ["OMP_NUM_THREADS"]}

runs = fill(options, ["cosine", "SP", "relation"], run)
if options.part is None:
    print(sorted(runs))
"""


def test_workers_share_the_runs(tmp_path: Path) -> None:
    """Two processes of one thread make every run once, and a second call only prints."""
    script = tmp_path / "table.py"
    script.write_text(TABLE)
    words = ["--workers", "2", "--seeds", "2", "--out", str(tmp_path)]
    environment = {"PYTHONPATH": str(ROOT / "examples")}
    done = launching.run(script, *words, cwd=tmp_path, environment=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    assert len({(line["name"], line["seed"]) for line in lines}) == len(lines) == 6
    assert sorted(line["part"] for line in lines) == [0, 0, 0, 1, 1, 1]
    assert {line["threads"] for line in lines} == {"1"}
    assert all(line["value"] == len(line["name"]) + line["seed"] for line in lines)
    again = launching.run(script, *words, cwd=tmp_path, environment=environment)
    assert again.stdout == done.stdout
    assert [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()] == lines


def test_measures_against_scipy_and_loops() -> None:
    ours, theirs = torch.randn(12, 12), torch.randn(12, 12)
    expected = []
    for row in range(12):
        rest = [column for column in range(12) if column != row]
        expected.append(spearmanr(ours[row, rest], theirs[row, rest]).statistic)
    torch.testing.assert_close(row_correlations(ours, theirs), torch.tensor(expected, dtype=torch.float64))
    shared = []
    for row in range(12):
        near = [sorted({*range(12)} - {row}, key=lambda c, s=s: -s[row, c].item())[:3] for s in (ours, theirs)]
        shared.append(len({*near[0]} & {*near[1]}) / 3)
    torch.testing.assert_close(shared_neighbours(ours, theirs, 3), torch.tensor(shared, dtype=torch.float64))
    scores, relevant = torch.tensor([[0.9, 0.8, 0.7, 0.6]]), torch.tensor([[False, True, False, True]])
    assert average_precisions(scores, relevant).item() == pytest.approx((1 / 2 + 2 / 4) / 2)


def test_runs_render_and_compare(tmp_path: Path) -> None:
    log, items = tmp_path / "deep" / "runs.jsonl", torch.arange(40.0)
    for seed in range(2):
        append(log, "classic", seed, {"m": (items + seed).tolist()})
        append(log, "ours", seed, {"m": (items + 3 + 2 * seed).tolist()})
        append(log, "noise", seed, {"m": (items + 40 * torch.rand(40) - 30).tolist()})
    with log.open("a") as file:
        file.write('{"name": "cut')
    runs = finished(log)
    assert len(runs) == 6
    table = render(runs, ["m"], ["ours", "classic", "absent"])
    assert "| ours | 23.5 ± 1.4 |" in table
    assert "absent" not in table
    said = difference(runs, "m", {"ours"})
    assert said.startswith("m: ours − classic = 3.5 ± 0.7 over seeds, p = 0.0001")
    close = {key: run for key, run in runs.items() if key[0] != "classic"}
    assert (
        float(
            difference(
                {**close, **{("noise", s): {"m": (items + 3.5 + torch.randn(40) * 9).tolist()} for s in range(2)}},
                "m",
                {"ours"},
            )
            .split("p = ")[1]
            .split()[0]
        )
        > 0.01
    )
