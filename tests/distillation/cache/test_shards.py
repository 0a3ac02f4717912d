"""The files of a teacher cache, whoever wrote them: what fits is read, what does not is named."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gssf_plug.distillation.cache import shards
from gssf_plug.distillation.cache.shards import digest_file, read_manifest, read_shard
from gssf_plug.errors import CheckpointError

KINDS = ["whole", "tokens"]
TENSORS = {
    "digests": torch.arange(3),
    "0.data": torch.ones(3, 4),
    "1.data": torch.ones(7, 4),
    "1.ends": torch.tensor([2, 2, 7]),  # rows of 2, 0 and 5 tokens
}


def manifest(**changes: object) -> dict[str, object]:
    key = {"teacher": "a", "taps": [{"path": "x"}, {"path": "y"}], "columns": ["text"]}
    shard = {"name": "shard-0.safetensors", "rows": 3, "digest": "d"}
    return {"version": 1, "key": key, "rows": 3, "content": "c", "kinds": KINDS, "shards": [shard], **changes}


def write(folder: Path, content: object) -> Path:
    (folder / "cache.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def test_a_manifest_is_read_as_it_stands(tmp_path: Path) -> None:
    assert read_manifest(write(tmp_path, manifest())) == manifest()
    empty = manifest(kinds=[], shards=[])  # before the first shard nobody knows the kinds
    assert read_manifest(write(tmp_path, empty)) == empty


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no manifest of a teacher cache"),
        (manifest(version=2), "is of another format. Upgrade gssf-plug"),
        (manifest(version=True), "'version' is no int"),
        (manifest(rows="3"), "'rows' is no int"),
        (manifest(key={"teacher": "a", "taps": {}, "columns": []}), "'taps' is no list"),
        (manifest(key={"teacher": "a", "taps": ["x", "y"], "columns": []}), "'path' is no str"),
        (manifest(kinds=["whole"]), "its parts do not fit together"),
        (manifest(kinds=["whole", "maps"]), "its parts do not fit together"),
        (manifest(shards=[{"name": "s", "rows": 0, "digest": "d"}]), "its parts do not fit together"),
        (manifest(shards=[{"name": "s", "digest": "d"}]), "'rows' is no int"),
        (manifest(shards=[{"name": "../s", "rows": 1, "digest": "d"}]), "names a file outside itself"),
    ],
)
def test_what_is_no_manifest_is_named(content: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_manifest(write(tmp_path, content))


def test_a_manifest_that_is_missing_or_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="holds no cache.json. Give a folder written by precompute"):
        read_manifest(tmp_path)
    monkeypatch.setattr(shards, "LIMIT_BYTES", 10)
    with pytest.raises(CheckpointError, match="is larger than 10 bytes"):
        read_manifest(write(tmp_path, manifest()))


def saved(folder: Path, **changes: torch.Tensor) -> dict[str, object]:
    tensors = {**TENSORS, **changes}
    path = folder / "shard.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items() if tensor is not None}, path)
    return {"name": path.name, "rows": 3, "digest": digest_file(path)}


def test_a_shard_holds_its_features(tmp_path: Path) -> None:
    found = read_shard(tmp_path, saved(tmp_path), KINDS, verify=True)
    assert {name: value.tolist() for name, value in found.items()} == {n: v.tolist() for n, v in TENSORS.items()}


@pytest.mark.parametrize(
    "changes",
    [
        {"digests": torch.arange(2)},
        {"digests": torch.arange(3.0)},
        {"0.data": torch.ones(2, 4)},
        {"0.data": torch.ones(3, 4, dtype=torch.long)},
        {"0.data": torch.tensor(1.0)},
        {"1.ends": torch.tensor([2, 1, 7])},
        {"1.ends": torch.tensor([-1, 1, 7])},
        {"1.ends": torch.tensor([2, 3, 6])},
        {"1.ends": None},
        {"2.data": torch.ones(3, 4)},
    ],
    ids=lambda changes: " ".join(changes),
)
def test_other_features_than_the_manifest_says_are_refused(changes: dict[str, torch.Tensor], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds other features than its manifest says"):
        read_shard(tmp_path, saved(tmp_path, **changes), KINDS, verify=False)


def test_a_shard_that_is_missing_or_another_one(tmp_path: Path) -> None:
    shard = saved(tmp_path)
    with pytest.raises(CheckpointError, match="is not what precompute wrote"):
        read_shard(tmp_path, {**shard, "digest": "0"}, KINDS, verify=True)
    read_shard(tmp_path, {**shard, "digest": "0"}, KINDS, verify=False)
    with pytest.raises(CheckpointError, match="is missing. It is damaged or truncated; delete it and run precompute"):
        read_shard(tmp_path, {**shard, "name": "other"}, KINDS, verify=True)
