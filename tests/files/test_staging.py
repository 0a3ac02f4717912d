"""No write, rename or removal goes through a link, in any kind of folder that we write; leftovers are removed."""

import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from workers.save_crash import KINDS, bert

from gssf_plug import GSSFMetric
from gssf_plug.distillation import Tap, precompute
from gssf_plug.errors import CheckpointError
from gssf_plug.files import own_folder, staging, write_atomically
from gssf_plug.retrieval import Tower, TwoTower
from gssf_plug.retrieval.training.checkpoints import Checkpoints


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def elsewhere(folder: Path, at: Path) -> None:
    """Move a file or folder of a save to `folder`, and leave a link to it."""
    folder.mkdir(exist_ok=True)
    target = folder / at.name
    shutil.move(at, target)
    at.symlink_to(target)


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_file_and_folder_of_a_save_may_be_a_link_and_its_target_stays(kind, tmp_path):
    KINDS[kind].save(tmp_path / "saved", 0)
    whole = snapshot(tmp_path / "saved")
    names = {part for path in whole for part in (path, path.split("/")[0])}
    for number, name in enumerate(sorted(names)):
        folder = shutil.copytree(tmp_path / "saved", tmp_path / f"received{number}")
        outside = tmp_path / f"outside{number}"
        elsewhere(outside, folder / name)
        before = snapshot(outside)
        assert KINDS[kind].which(folder) == 0, "links are read through"
        KINDS[kind].save(folder, 1)
        assert snapshot(outside) == before, f"a save went through the link '{name}'"
        assert KINDS[kind].which(folder) == 1
        assert KINDS[kind].which(shutil.copytree(folder, tmp_path / f"copy{number}")) == 1


def test_a_listed_file_behind_a_link_is_not_removed(tmp_path):
    """The reported case: the list of files of the save before names a path through a linked folder."""
    model = TwoTower(Tower(None, projection=nn.Linear(6, 8)), None, GSSFMetric(8, block_size=4))
    model.save_pretrained(tmp_path / "received")
    elsewhere(tmp_path / "outside", tmp_path / "received" / "metric")
    before = snapshot(tmp_path / "outside")
    loaded = TwoTower.from_pretrained(tmp_path / "received")
    loaded.metric = None
    loaded.save_pretrained(tmp_path / "received")
    assert snapshot(tmp_path / "outside") == before
    assert TwoTower.from_pretrained(tmp_path / "received").metric is None


@pytest.mark.parametrize("name", [".saving-abcdefgh", ".saved-0123456789abcdef"])
def test_linked_leftovers_are_taken_away_and_their_targets_stay(name, tmp_path):
    outside, folder = tmp_path / "outside", tmp_path / "received"
    outside.mkdir()
    (outside / "mine").write_text("mine")
    folder.mkdir()
    (folder / name).symlink_to(outside)
    GSSFMetric(8, block_size=4).save_pretrained(folder)
    assert snapshot(outside) == {"mine": b"mine"}
    assert not (folder / name).is_symlink()


def test_a_cache_is_written_beside_links(tmp_path):
    """Shards and manifest that are links are replaced; their targets stay."""

    def collate(rows):
        return {"input_ids": torch.tensor([row["input_ids"] for row in rows])}

    def make():
        rows = [{"input_ids": [number, 1, 2]} for number in range(4)]
        precompute(bert(), [Tap("encoder.layer.0")], rows, tmp_path / "cache", collate=collate, batch_size=2)

    (tmp_path / "cache").mkdir()
    for name in ("shard-00000.safetensors", "target.json"):
        (tmp_path / name).write_text("mine")
    (tmp_path / "cache" / "shard-00000.safetensors").symlink_to(tmp_path / "shard-00000.safetensors")
    make()
    assert (tmp_path / "shard-00000.safetensors").read_text() == "mine"
    assert not (tmp_path / "cache" / "shard-00000.safetensors").is_symlink()


def test_checkpoints_of_a_run_are_not_written_through_a_link(tmp_path):
    (tmp_path / "outside" / ".step-00000001.tmp").mkdir(parents=True)
    (tmp_path / "checkpoints").symlink_to(tmp_path / "outside")
    checkpoints = Checkpoints(tmp_path / "checkpoints", 1)
    checkpoints.clean()
    with pytest.raises(CheckpointError, match="is a link, and nothing is written through one; link the output_dir"):
        checkpoints.write(Accelerator(cpu=True), 1, {})
    assert [path.name for path in (tmp_path / "outside").iterdir()] == [".step-00000001.tmp"]


def test_a_folder_below_is_made_in_place_of_a_link(tmp_path):
    (tmp_path / "outside" / "deep").mkdir(parents=True)
    (tmp_path / "root" / "a").mkdir(parents=True)
    (tmp_path / "root" / "a" / "b").symlink_to(tmp_path / "outside")
    made = own_folder(tmp_path / "root", "a/b/deep")
    assert made.is_dir()
    assert not (tmp_path / "root" / "a" / "b").is_symlink()
    assert (tmp_path / "outside" / "deep").is_dir()
    (tmp_path / "root" / "file").write_text("")
    with pytest.raises(FileExistsError):
        own_folder(tmp_path / "root", "file/deep")


def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(tmp_path):
    (tmp_path / ".saving-left").mkdir()
    with staging.staging(tmp_path) as living:
        (living / "half").write_text("half")
        write_atomically(tmp_path / "file", lambda path: path.write_text("whole"))
        assert (living / "half").read_text() == "half"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
