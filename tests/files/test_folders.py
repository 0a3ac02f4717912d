"""A save is one switch: killed, on a full disk, beside readers: all of the earlier or all of the new is there."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn
from workers import launching

from gssf_plug import GSSFMetric
from gssf_plug.errors import ArgumentError, CheckpointError
from gssf_plug.files import folders
from gssf_plug.retrieval import Tower, TwoTower


def filled(dim: int, **options: object) -> GSSFMetric:
    metric = GSSFMetric(dim, **{"block_size": 4, **options})
    with torch.no_grad():
        for parameter in metric.parameters():
            parameter.fill_(dim)
    return metric


def model(dim: int) -> TwoTower:
    return TwoTower(Tower(None, projection=nn.Linear(6, dim)), None, filled(dim))


def dies_at(rename: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The `rename`-th rename, and every one after it, does not happen: as in a process that was killed there."""
    count, whole = iter(range(1, 1000)), {name: getattr(os, name) for name in ("replace", "rename")}

    def dying(name: str):
        def move(*paths: object) -> None:
            if next(count) >= rename:
                raise KeyboardInterrupt
            whole[name](*paths)

        return move

    for name in whole:
        monkeypatch.setattr(folders.os, name, dying(name))


@pytest.mark.parametrize("rename", range(1, 12))
@pytest.mark.parametrize("make", [filled, model], ids=["metric", "retrieval"])
def test_at_every_rename_one_of_the_two_saves_is_whole(make, rename, tmp_path, monkeypatch):
    """Whatever of a save of another configuration took place, the folder loads; the next save leaves it tidy."""
    make(8).save_pretrained(tmp_path)
    kind = type(make(8))
    switch, last = (1, 2) if kind is GSSFMetric else (5, 10)  # the first three are of its metric, while it is staged
    with monkeypatch.context() as dying:
        dies_at(rename, dying)
        try:
            make(16).save_pretrained(tmp_path)
            assert rename > last, "nothing was interrupted"
        except KeyboardInterrupt:
            pass
    found = kind.from_pretrained(tmp_path)
    dim = found.dim if kind is GSSFMetric else found.metric.dim
    metric = found if kind is GSSFMetric else found.metric
    assert dim == (16 if rename > switch else 8)
    assert {value for parameter in metric.parameters() for value in parameter.unique().tolist()} == {dim}
    make(12).save_pretrained(tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    copied = shutil.copytree(tmp_path, tmp_path / "copy")  # under their own names: without what was hidden
    again = kind.from_pretrained(copied)
    assert (again.dim if kind is GSSFMetric else again.metric.dim) == 12


def test_a_first_save_that_was_killed_is_no_save(tmp_path, monkeypatch):
    dies_at(2, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        filled(8).save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    with pytest.raises(CheckpointError, match="model.safetensors' is missing"):
        GSSFMetric.from_pretrained(tmp_path)


def test_other_tools_find_what_they_expect(tmp_path):
    """The names, plain JSON, and the configuration that is in the weights' header."""
    filled(8).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["dim"] == 8
    with safe_open(tmp_path / "model.safetensors", "pt") as opened:
        assert opened.metadata()["config"] == (tmp_path / "config.json").read_text()
        assert opened.metadata()["format"] == "pt"


def test_a_changed_number_is_found(tmp_path):
    filled(8).save_pretrained(tmp_path)
    data = bytearray((tmp_path / "model.safetensors").read_bytes())
    data[-3] ^= 1
    (tmp_path / "model.safetensors").write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match="does not hold the numbers that were saved"):
        GSSFMetric.from_pretrained(tmp_path)


def test_an_edited_configuration_is_not_taken_for_another_save(tmp_path):
    filled(8).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"normalize": true', '"normalize": false'))
    with pytest.raises(CheckpointError, match="two different saves"):
        GSSFMetric.from_pretrained(tmp_path)


def test_a_file_of_the_save_before_goes_only_while_it_is_as_it_was_saved(tmp_path):
    model(8).save_pretrained(tmp_path)
    (tmp_path / "metric" / "README.md").write_text("mine")
    TwoTower(Tower(None, projection=nn.Linear(6, 8)), None).save_pretrained(tmp_path)
    assert [path.name for path in (tmp_path / "metric").iterdir()] == ["README.md"]


def test_a_folder_in_the_way_of_a_file_is_found_before_anything_is_changed(tmp_path):
    model(8).save_pretrained(tmp_path)
    for path in (tmp_path / "metric").iterdir():
        path.unlink()
    (tmp_path / "metric" / "config.json").mkdir()
    (tmp_path / "metric" / "config.json" / "mine").write_text("")
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match="could not be written .*Is a directory"):
        model(16).save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    shutil.rmtree(tmp_path / "metric")
    (tmp_path / "metric").write_text("a file")
    with pytest.raises(CheckpointError, match="could not be written .*Not a directory"):
        model(16).save_pretrained(tmp_path)
    assert (tmp_path / "metric").read_text() == "a file"


def test_without_second_names_the_parts_are_copied(tmp_path, monkeypatch):
    """As on FAT and on some network drives."""

    def refuse(*paths: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(folders.os, "link", refuse)
    model(8).save_pretrained(tmp_path)
    dies_at(6, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        model(16).save_pretrained(tmp_path)
    assert TwoTower.from_pretrained(tmp_path).metric.dim == 16


@pytest.mark.parametrize("name", ["", "  ", "a\0b", None, 3, b"bytes"])
@pytest.mark.bad_input
def test_a_folder_must_be_named(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for thing in (filled(8), model(8)):
        with pytest.raises(ArgumentError, match=r"`save_directory` must (name a folder|be a path)"):
            thing.save_pretrained(name)
    assert not list(tmp_path.iterdir())


def crash(folder: Path, *options: str) -> list[dict[str, object]]:
    alone = {"OMP_NUM_THREADS": "1"}
    done = launching.run(
        "workers.save_crash", str(folder / "crash"), *options, cwd=folder, environment=alone, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_killed_saves_full_disks_and_readers_beside_writers(tmp_path):
    """The short form; the long one is `python -m workers.save_crash FOLDER`."""
    reports = crash(tmp_path, "--kills", "5", "--reads", "20")
    assert [report["kind"] for report in reports] == ["metric", "adapter", "retrieval", "distiller", "cache"]
    assert sum(report["halfway"] for report in reports) >= 5, f"hardly a kill met a save: {reports}"
    assert all(report["refused saves"] >= 3 for report in reports[:4]), reports
    assert all(sum(report["of each"]) == 20 for report in reports[:4]), reports
