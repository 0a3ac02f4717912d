"""Killed at random moments or inside writes, disk full, asked to end: a resumed run ends in an unbroken one's bits."""

import json
import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]


def test_a_killed_run_ends_like_an_unbroken_one(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "workers.retrieval_crash", str(tmp_path), "0"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert len(report["kills"]) >= 5, report
    assert report["exit"] == 143, report
    assert 0 < report["stopped"] < report["steps"], report
