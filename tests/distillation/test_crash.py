"""SIGKILL at random moments, resumed: the same bits as unbroken. The long form: tests/workers/distillation_crash.py."""

import json

import pytest
import torch
from distillation.test_trainer import build
from workers import launching

from gssf_plug.distillation.checkpoint import find_checkpoint
from gssf_plug.errors import CheckpointError


def test_five_kills(tmp_path):
    alone = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = launching.run("workers.distillation_crash", str(tmp_path), "5", cwd=tmp_path, environment=alone, timeout=500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["text"]["killed"] == 5
    assert report["image"]["killed"] == 2


def test_an_unfinished_checkpoint_is_none(tmp_path, caplog):
    """Where a killed process left no trainer_state.json, or half of one; Trainer itself would resume from it."""
    trainer = build(tmp_path, "mse", save_strategy="steps", save_steps=1, max_steps=3)
    trainer.train()
    state = tmp_path / "checkpoint-3" / "trainer_state.json"
    whole = state.read_text()
    for left in (None, whole[: len(whole) // 2], "[]"):
        state.unlink() if left is None else state.write_text(left)
        with pytest.raises(CheckpointError, match="is no finished checkpoint"):
            find_checkpoint(tmp_path / "checkpoint-3", tmp_path)
        assert find_checkpoint(True, tmp_path) == str(tmp_path / "checkpoint-2")
    assert "checkpoint-3' was not finished; going on from" in caplog.text
    again = build(tmp_path, "mse", save_strategy="steps", save_steps=1, max_steps=3)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 3
    with pytest.raises(CheckpointError, match="holds no finished checkpoint"):
        find_checkpoint(True, tmp_path / "nothing")
    (tmp_path / "checkpoint-best").mkdir()
    assert find_checkpoint(True, tmp_path) == str(tmp_path / "checkpoint-3")


def test_a_run_resumed_at_its_end_takes_no_step(tmp_path):
    """Killed after the last checkpoint, in the middle of an epoch, where Trainer itself takes one step more."""
    trained = [build(tmp_path, "mse", save_strategy="steps", save_steps=1, max_steps=3) for _ in range(2)]
    trained[0].train()
    trained[1].train(resume_from_checkpoint=True)
    assert trained[1].state.global_step == 3
    assert not (tmp_path / "checkpoint-4").exists()
    for one, other in zip(*(trainer.distiller.state_dict().values() for trainer in trained), strict=True):
        assert torch.equal(one, other)
    assert [trainer.optimizer.state_dict()["state"][0]["step"] for trainer in trained] == [3, 3]
