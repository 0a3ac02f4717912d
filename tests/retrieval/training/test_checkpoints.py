"""Checkpoints: complete or absent, damage named, strangers' folders left alone."""

import logging
import resource
import signal

import pytest
import torch
from accelerate import Accelerator
from retrieval import toy
from retrieval.toy import assert_same, checkpoints, weights
from torch import nn

from gssf_plug.errors import ArgumentError, CheckpointError
from gssf_plug.losses import InfoNCE
from gssf_plug.retrieval.training.checkpoints import Checkpoints, check_folder, make_folder

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path):
    trainer = toy.trainer(tmp_path / "full")
    write, count = trainer.accelerator.save_state, iter(range(9))

    def full_at_the_third(folder):
        write(folder)
        if next(count) == 2:
            raise OSError(28, "No space left on device")

    trainer.accelerator.save_state = full_at_the_third
    message = (
        r"step-00000009' could not be written \(.*No space left.*\)\. Free some disk space.*step-00000006' is untouched"
    )
    with pytest.raises(CheckpointError, match=message):
        trainer.train()
    assert checkpoints(trainer) == ["step-00000003", "step-00000006"]
    resumed = toy.trainer(tmp_path / "full")
    resumed.train(resume=True)
    unbroken = toy.trainer(tmp_path / "unbroken")
    unbroken.train()
    assert_same(weights(resumed), weights(unbroken))


def test_a_real_refusal_of_the_system_is_told_too(tmp_path):
    """A file size limit: write() itself fails in the middle of a file, as on a full disk."""
    trainer = toy.trainer(tmp_path)
    trainer._begin(False)
    for group in trainer._groups_of_epoch():
        trainer._optimize(group)
    trainer._save_if_due(False)
    before, limits = checkpoints(trainer), resource.getrlimit(resource.RLIMIT_FSIZE)
    ignore = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    trainer._optimize(next(trainer._groups_of_epoch()))
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1500, limits[1]))
        with pytest.raises(CheckpointError, match="could not be written"):
            trainer._save_if_due(True)
        with pytest.raises(CheckpointError, match=r"best\.safetensors' could not be written"):
            trainer.best.write(trainer.model)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignore)
    assert checkpoints(trainer) == before == ["step-00000003"]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.bin", "random_states_0.pkl", "progress.json"])
@pytest.mark.parametrize("how", ["cut", "gone", "foreign"])
def test_a_damaged_checkpoint_is_named(tmp_path, file, how):
    trainer = toy.trainer(tmp_path, changes={"epochs": 1})
    trainer.train()
    path = tmp_path / "checkpoints" / "step-00000003" / file
    content = path.read_bytes()
    path.unlink()
    if how != "gone":
        path.write_bytes(content[: len(content) // 2] if how == "cut" else b"no such thing" * 9)
    with pytest.raises(CheckpointError, match="step-00000003' is damaged .*Delete '.*step-00000003' to resume from"):
        toy.trainer(tmp_path, changes={"epochs": 1}).train(resume=True)


def test_a_newer_checkpoint_and_missing_best_weights_are_named(tmp_path):
    trainer = toy.trainer(tmp_path, changes={"epochs": 1}, eval_data=None)
    with pytest.raises(CheckpointError, match=r"best\.safetensors' cannot be loaded .*Train with eval_data"):
        trainer.load_best()
    trainer.train()
    path = tmp_path / "checkpoints" / "step-00000003" / "progress.json"
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 7'))
    with pytest.raises(CheckpointError, match="is in format version 7, and this gssf-plug reads up to 1. Upgrade"):
        trainer.train(resume=True)


def test_stray_names_are_no_checkpoints(tmp_path):
    toy.trainer(tmp_path / "one").train()
    folder = tmp_path / "stray" / "checkpoints"
    stopped = toy.trainer(tmp_path / "stray", changes={"max_steps": 27})
    folder.mkdir(parents=True)
    for name in ("step-old", "step-", "step-00000099.zip"):
        (folder / name).mkdir()
    (folder / "step-00000098").write_text("a file")
    (folder / ".step-notes").mkdir()
    (tmp_path / "stray" / ".somebody.tmp").write_text("else's")
    assert stopped.train().step == 27
    resumed = toy.trainer(tmp_path / "stray", changes={"max_steps": 27})
    assert resumed.train(resume=True).step == 27
    assert {path.name for path in folder.iterdir()} >= {"step-old", "step-", ".step-notes", "step-00000027"}
    assert (tmp_path / "stray" / ".somebody.tmp").exists()


def test_shared_tensors_are_no_news_at_every_checkpoint(tmp_path, caplog):
    model = toy.model()
    model.image_tower.encoder.twin = model.image_tower.encoder[3].weight
    with caplog.at_level(logging.WARNING):
        toy.trainer(tmp_path, model=model, changes={"epochs": 2}).train()
    assert "Removed shared tensor" not in caplog.text
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2
    twin = toy.model()
    twin.image_tower.encoder.twin = twin.image_tower.encoder[3].weight
    resumed = toy.trainer(tmp_path, model=twin, changes={"epochs": 2})
    resumed.train(resume=True)
    assert_same(weights(resumed), {name: value for name, value in model.state_dict().items()})


def test_another_loss_is_not_called_damage(tmp_path):
    toy.trainer(tmp_path, changes={"epochs": 1}).train()
    with pytest.raises(ArgumentError, match=r"loss\.class='gssf_plug\.losses\.infonce\.InfoNCE'"):
        toy.trainer(tmp_path, changes={"epochs": 1}, loss=InfoNCE()).train(resume=True)
    other = toy.trainer(tmp_path, changes={"epochs": 1}, loss=InfoNCE(learned_scale=False))
    with pytest.raises(CheckpointError, match="is of another model or loss than this run's.*Keep it"):
        other.train(resume="anyway")


@pytest.fixture
def prepared():
    accelerator = Accelerator(cpu=True)
    model = nn.Linear(2, 2)
    return accelerator, accelerator.prepare(model)


def test_the_newest_come_back_and_older_ones_go(tmp_path, prepared):
    accelerator, model = prepared
    kept = Checkpoints(tmp_path / "checkpoints", keep=2)
    assert kept.latest() is None
    for step in (1, 2, 100_000_000):
        with torch.no_grad():
            model.weight.fill_(step)
        kept.write(accelerator, step, {"step": step})
    assert sorted(path.name for path in kept.folder.iterdir()) == ["step-00000002", "step-100000000"]
    assert kept.latest().name == "step-100000000"  # by number: its name has a digit more
    assert kept.describe(kept.latest()) == {
        "format_version": 1, "processes": 1, "layout": "whole", "step": 100_000_000
    }  # fmt: skip
    kept.load(accelerator, kept.folder / "step-00000002")
    assert model.weight.eq(2).all()
    before = (kept.folder / "step-00000002").stat().st_mtime_ns
    kept.write(accelerator, 2, {"step": 2})  # a resumed run that was stopped again before its first step
    assert (kept.folder / "step-00000002").stat().st_mtime_ns == before


def test_what_a_crash_left_is_removed_and_nothing_else(tmp_path):
    for name in (".step-00000003.tmp", ".step-00000001.old", ".step-notes", "step-00000002", ".step-1.tmp"):
        (tmp_path / name).mkdir()
    Checkpoints(tmp_path, keep=1).clean()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".step-1.tmp", ".step-notes", "step-00000002"]


def test_weights_that_lie_otherwise_are_refused(tmp_path, prepared):
    accelerator, _ = prepared
    kept = Checkpoints(tmp_path, keep=1)
    kept.write(accelerator, 1, {})
    path = tmp_path / "step-00000001" / "progress.json"
    path.write_text(path.read_text().replace('"whole"', '"FSDP2, SHARDED_STATE_DICT"'))
    with pytest.raises(CheckpointError, match=r"lie otherwise \(FSDP2, SHARDED_STATE_DICT\) than those .*\(whole\)"):
        kept.load(accelerator, tmp_path / "step-00000001")


def test_nothing_is_written_through_a_link(tmp_path, prepared):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "checkpoints").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="is a link, and nothing is written through one"):
        Checkpoints(tmp_path / "checkpoints", keep=1).write(prepared[0], 1, {})
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ArgumentError, match="`output_dir` must be a folder, .* but got the file '.*file'"):
            check_folder(folder)
        with pytest.raises(CheckpointError, match="cannot be made .*Choose an output_dir that may be written"):
            make_folder(folder)
    with pytest.raises(ArgumentError, match="`output_dir` must be a folder"):
        toy.trainer(tmp_path / "file")
    check_folder(tmp_path / "new" / "run")
    make_folder(tmp_path / "new" / "run")
    assert (tmp_path / "new" / "run").is_dir()
