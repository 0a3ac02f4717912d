"""The script for a GPU runs whole on a CPU, and never calls passed what was not run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch

from device import report
from device.parts import attention_types_speed, ranking
from device.record import Record

SCRIPT = Path(__file__).with_name("run.sh")
OUTCOMES = {"passed", "measured", "not run"}


def test_the_whole_runs_on_a_cpu(tmp_path):
    environment = {**os.environ, "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    command = [str(SCRIPT), "--device", "cpu", "--quick", "--output", str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    assert {row["part"] for row in rows} == set(report.PARTS)
    assert {row["outcome"] for row in rows} <= OUTCOMES, [row for row in rows if row["outcome"] == "failed"]
    assert all(row["note"] for row in rows if row["outcome"] == "not run")
    assert all(row["claim"] for row in rows if row["outcome"] == "passed")
    page = (tmp_path / "report.md").read_text()
    assert all(f"## {part}" in page for part in report.PARTS)


@pytest.mark.parametrize("what", ["topk", "instance_recall", "reid_ranking", "image_text_recall"])
def test_a_wrong_rank_fails_on_a_cpu_too(monkeypatch, tmp_path, what):
    right = getattr(ranking, what)

    def swapped(*args, **options):
        found = right(*args, **options)
        if what != "topk":
            return {**found, "R@1": found.get("R@1", 0.0) + 100 / 40}  # one query
        found.indices[3, [4, 5]] = found.indices[3, [5, 4]]
        return found

    monkeypatch.setattr(ranking, what, swapped)
    record = Record("ranking", tmp_path / "rows.jsonl")
    ranking.run(record, torch.device("cpu"), quick=True)
    rows = [json.loads(line) for line in record.path.read_text().splitlines()]
    failed = {row["name"].partition(":")[0] for row in rows if row["outcome"] == "failed"}
    assert failed == {what}
    assert sum(row["outcome"] == "passed" for row in rows) == 3 * 3 * 3


def test_types_that_do_not_fit_in_the_time_are_said_not_to_have_run(tmp_path):
    record = Record("attention_types_speed", tmp_path / "rows.jsonl", until=time.monotonic())
    attention_types_speed.run(record, torch.device("cpu"), quick=False)
    rows = [json.loads(line) for line in record.path.read_text().splitlines()]
    assert len(rows) == 2 * len(attention_types_speed.MOST_USED)
    assert {(row["outcome"], row["note"]) for row in rows} == {("not run", "the time of this part was over")}


def only(monkeypatch, tmp_path: Path, run: object, seconds: float = 60) -> tuple[int, list[dict]]:
    """The report of one invented part."""
    part = ModuleType("device.parts.invented")
    part.run = run
    monkeypatch.setitem(sys.modules, "device.parts.invented", part)
    monkeypatch.setattr(report, "PARTS", {"invented": seconds})
    code = report.main(["--device", "cpu", "--quick", "--output", str(tmp_path)])
    return code, json.loads((tmp_path / "report.json").read_text())["rows"]


def test_a_part_that_hangs_is_stopped_and_keeps_what_it_had(monkeypatch, tmp_path):
    def run(record, device, quick):
        record.at_most("first", 0.5, 1.0)
        time.sleep(60)

    code, rows = only(monkeypatch, tmp_path, run, seconds=5.5)
    assert [row["outcome"] for row in rows] == ["passed", "not run"]
    assert "limit of 6 s" in rows[1]["note"]
    assert code == 0


def test_a_part_that_dies_has_failed(monkeypatch, tmp_path):
    code, rows = only(monkeypatch, tmp_path, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    assert (code, rows[0]["outcome"], rows[0]["note"]) == (1, "failed", "the process ended with -9")


def test_a_missed_claim_an_error_and_a_nan_have_failed(monkeypatch, tmp_path):
    def run(record: Record, device, quick):
        record.at_most("too much", 1.1, 1.0)
        record.at_least("no number", float("nan"), 1.0)
        with record.step("broken"):
            raise RuntimeError("no kernel image")

    code, rows = only(monkeypatch, tmp_path, run)
    assert code == 1
    assert [row["outcome"] for row in rows] == ["failed"] * 3
    assert rows[2]["note"] == "RuntimeError: no kernel image"


def test_without_a_card_nothing_passes(monkeypatch, tmp_path):
    monkeypatch.setattr(report.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(report, "PARTS", {"metric": 60})
    assert report.main(["--output", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    assert [(row["outcome"], row["note"]) for row in rows] == [("not run", "torch sees no CUDA device here")]
