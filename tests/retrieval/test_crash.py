"""Killed at random moments or inside writes, disk full, asked to end: a resumed run ends in an unbroken one's bits."""

import json

from workers import launching


def test_a_killed_run_ends_like_an_unbroken_one(tmp_path):
    alone = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = launching.run("workers.retrieval_crash", str(tmp_path), "0", cwd=tmp_path, environment=alone)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert len(report["kills"]) >= 5, report
    assert report["exit"] == 143, report
    assert 0 < report["stopped"] < report["steps"], report
