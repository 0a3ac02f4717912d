"""Folders we publish: what is refused, and that an interrupted save loses nothing."""

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

import gssf_plug.files.reading
import gssf_plug.files.staging
from gssf_plug import GSSFMetric
from gssf_plug.errors import CheckpointError
from gssf_plug.files.folders import DIGEST_KEY, text_digest


@pytest.fixture
def metric() -> GSSFMetric:
    metric = GSSFMetric(8, block_size=4, grouping=torch.randperm(8))
    torch.nn.init.normal_(metric.structures["block_diagonal"].weight)
    return metric


@pytest.fixture
def folder(metric: GSSFMetric, tmp_path: Path) -> Path:
    metric.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def edit(folder: Path, **changes: object) -> None:
    """Change the configuration and keep the pair consistent, as a foreign writer would."""
    config = json.loads((folder / "config.json").read_text())
    config.update(changes)
    text = json.dumps(config)
    (folder / "config.json").write_text(text)
    repair_digest(folder, text)


def repair_digest(folder: Path, text: str | None = None, tensors: dict[str, torch.Tensor] | None = None) -> None:
    text = text or (folder / "config.json").read_text()
    tensors = tensors or load_file(folder / "model.safetensors")
    metadata = {DIGEST_KEY: text_digest(text)}
    save_file(tensors, folder / "model.safetensors", metadata=metadata)


def test_folder_holds_data_only(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    config = json.loads((folder / "config.json").read_text())
    assert config["format"] == "gssf-plug/metric"
    assert config["format_version"] == 1
    assert (folder / "model.safetensors").stat().st_mode & 0o777 == 0o644


def test_card_has_front_matter_and_is_not_overwritten(metric: GSSFMetric, folder: Path) -> None:
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "gssf-plug"
    assert card.data.license is None, "nobody said under which licence these weights are"
    assert "from_pretrained" in card.text
    (folder / "README.md").write_text("my own words")
    metric.save_pretrained(folder)
    assert (folder / "README.md").read_text() == "my own words"


def test_saving_twice_replaces(metric: GSSFMetric, folder: Path) -> None:
    metric.reset_parameters()
    metric.save_pretrained(folder)
    assert GSSFMetric.from_pretrained(folder).penalty() == 0


class Full:
    """A disk that refuses at the n-th file."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, refuse_at: int) -> None:
        self.count, self.refuse_at, self.write = 0, refuse_at, os.fsync
        monkeypatch.setattr(gssf_plug.files.staging.os, "fsync", self)

    def __call__(self, handle: int) -> None:
        self.count += 1
        if self.count == self.refuse_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.write(handle)


@pytest.mark.parametrize("refuse_at", [1, 2, 3])
@pytest.mark.parametrize("dim", [8, 16])
def test_full_disk_keeps_the_last_good_save(
    metric: GSSFMetric, folder: Path, monkeypatch: pytest.MonkeyPatch, refuse_at: int, dim: int
) -> None:
    before = metric.matrix().clone()
    Full(monkeypatch, refuse_at)
    message = r"could not be written \(.*No space left.*\). Free some disk space and save again; what was there before"
    with pytest.raises(CheckpointError, match=message):
        GSSFMetric(dim, block_size=8).save_pretrained(folder)
    assert not list(folder.glob(".*")), "temporary files are left behind"
    assert torch.equal(GSSFMetric.from_pretrained(folder).matrix(), before)


def test_a_file_in_the_way(metric: GSSFMetric, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="Check that the folder exists and is writable"):
        metric.save_pretrained(tmp_path / "file")


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_truncated_weights(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="is no whole safetensors file .* damaged or truncated"):
        GSSFMetric.from_pretrained(folder)


def test_truncated_config(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text()[:40])
    with pytest.raises(CheckpointError, match="is not valid JSON .* damaged or truncated"):
        GSSFMetric.from_pretrained(folder)


def test_edited_config(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"normalize": true', '"normalize": false'))
    with pytest.raises(CheckpointError, match="two different saves"):
        GSSFMetric.from_pretrained(folder)


def test_oversized_config(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gssf_plug.files.reading, "CONFIG_LIMIT_BYTES", 10)
    with pytest.raises(CheckpointError, match="is larger than 10 bytes"):
        GSSFMetric.from_pretrained(folder)


def test_foreign_format(folder: Path) -> None:
    edit(folder, format="somebody/else")
    with pytest.raises(CheckpointError, match="is not of the kind 'gssf-plug/metric' .its format is 'somebody/else'"):
        GSSFMetric.from_pretrained(folder)


def test_newer_format(folder: Path) -> None:
    edit(folder, format_version=2)
    with pytest.raises(CheckpointError, match="is in format version 2, .* reads up to 1. Upgrade gssf-plug"):
        GSSFMetric.from_pretrained(folder)


def test_invalid_version(folder: Path) -> None:
    edit(folder, format_version="1")
    with pytest.raises(CheckpointError, match="has no valid format version"):
        GSSFMetric.from_pretrained(folder)


def test_unknown_configuration_key(folder: Path) -> None:
    edit(folder, blocks=3)
    with pytest.raises(CheckpointError, match="has a configuration with the key 'blocks' unknown"):
        GSSFMetric.from_pretrained(folder)


def test_configuration_that_does_not_hold_together(folder: Path) -> None:
    edit(folder, block_size=3)
    with pytest.raises(CheckpointError, match="does not hold together .*`block_size` must divide dim=8"):
        GSSFMetric.from_pretrained(folder)


def test_missing_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["structures.diagonal.weight"]
    repair_digest(folder, tensors=tensors)
    with pytest.raises(CheckpointError, match=r"lacks the tensor 'structures.diagonal.weight' \(1 missing\)"):
        GSSFMetric.from_pretrained(folder)


def test_unknown_tensor(folder: Path) -> None:
    repair_digest(folder, tensors={**load_file(folder / "model.safetensors"), "extra": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="has an unknown tensor 'extra'"):
        GSSFMetric.from_pretrained(folder)


def test_tensor_of_another_shape(folder: Path) -> None:
    tensors = {**load_file(folder / "model.safetensors"), "structures.diagonal.weight": torch.zeros(4)}
    repair_digest(folder, tensors=tensors)
    with pytest.raises(
        CheckpointError, match=r"has 'structures.diagonal.weight' in shape \(4,\) where \(8,\) is needed"
    ):
        GSSFMetric.from_pretrained(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name}' is missing"):
        GSSFMetric.from_pretrained(folder)
