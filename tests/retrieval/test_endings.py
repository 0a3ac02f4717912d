"""How launched runs end: with their own exit code, and with no thread of gloo left when Python is taken down."""

import json
import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
CODES = {"end": 0, "destroyed": 0, "collective": 0, "raises": 1, "interrupted": -2}


def test_a_launched_run_ends_by_itself_in_every_way(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "workers.endings", str(tmp_path), ",".join(CODES), "2"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(reports) == 2 * len(CODES)
    for report in reports:
        assert report["codes"] == [CODES[report["ending"]]] * 2, report
        assert min(report["during"]) > 0, "no thread of gloo was seen: the check below would say nothing"
        assert report["left"] == [0, 0], report
