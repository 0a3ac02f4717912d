"""The files of a teacher cache: a manifest and shards, read strictly, whoever wrote them."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gssf_plug.errors import CheckpointError
from gssf_plug.files import inside, parse_json, read_tensors

__all__ = ["MANIFEST", "VERSION", "digest_file", "read_manifest", "read_shard"]

MANIFEST = "cache.json"
VERSION = 1
LIMIT_BYTES = 256 * 2**20  # a manifest has a line per shard
VALUES_LIMIT = 4_000_000  # a shard has three
DAMAGED = "It is damaged or truncated; delete it and run precompute again, which redoes only what is missing."
FIELDS: dict[str, type] = {"version": int, "key": dict, "rows": int, "content": str, "kinds": list, "shards": list}
KEY: dict[str, type] = {"teacher": str, "taps": list, "columns": list}
TAP: dict[str, type] = {"path": str}
SHARD: dict[str, type] = {"name": str, "rows": int, "digest": str}


def read_manifest(folder: Path) -> dict[str, Any]:
    """What a folder holds and what it was made from.

    Raises:
        CheckpointError: the manifest is missing, damaged or of a newer format, or it names files outside the folder.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise CheckpointError(folder, f"holds no {MANIFEST}", "Give a folder written by precompute.")
    if path.stat().st_size > LIMIT_BYTES:
        raise CheckpointError(path, f"is larger than {LIMIT_BYTES} bytes", "It is no manifest of ours.")
    try:
        manifest = parse_json(path, path.read_text(encoding="utf-8", errors="replace"), most=VALUES_LIMIT)
    except CheckpointError as error:
        raise CheckpointError(path, f"is no manifest of a teacher cache ({error})", DAMAGED) from None
    if type(manifest.get("version")) is int and not 1 <= manifest["version"] <= VERSION:
        raise CheckpointError(path, "is of another format", "Upgrade gssf-plug, or run precompute again.")
    _check(path, manifest, FIELDS)
    _check(path, manifest["key"], KEY)
    for tap in manifest["key"]["taps"]:
        _check(path, tap, TAP)
    for shard in manifest["shards"]:
        _check(path, shard, SHARD)
        inside(folder, shard["name"])
    known = all(kind in ("tokens", "whole") for kind in manifest["kinds"])
    complete = len(manifest["kinds"]) == len(manifest["key"]["taps"]) or not manifest["shards"]
    if not known or not complete or any(shard["rows"] < 1 for shard in manifest["shards"]):
        raise CheckpointError(path, "is no manifest of a teacher cache (its parts do not fit together)", DAMAGED)
    return manifest


def read_shard(folder: Path, shard: Mapping[str, Any], kinds: list[str], *, verify: bool) -> dict[str, Tensor]:
    """The features of one shard, memory-mapped.

    Raises:
        CheckpointError: the shard is missing or damaged, or holds something else than the manifest says.
    """
    path = inside(folder, shard["name"])
    if not path.is_file():
        raise CheckpointError(path, "is missing", DAMAGED)
    if verify and digest_file(path) != shard["digest"]:
        raise CheckpointError(path, "is not what precompute wrote", DAMAGED)
    tensors, _ = read_tensors(path)
    if not _fits(tensors, shard["rows"], kinds):
        raise CheckpointError(path, "holds other features than its manifest says", DAMAGED)
    return tensors


def digest_file(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fits(tensors: Mapping[str, Tensor], rows: int, kinds: list[str]) -> bool:
    """One digest per row; for each tap a feature per row, or tokens and where each row's end."""
    names = {"digests"} | {f"{tap}.data" for tap in range(len(kinds))}
    names |= {f"{tap}.ends" for tap, kind in enumerate(kinds) if kind == "tokens"}
    if tensors.keys() != names or not _is_index(tensors["digests"], rows):
        return False
    for tap, kind in enumerate(kinds):
        data = tensors[f"{tap}.data"]
        if data.ndim < 1 or not data.is_floating_point() or (kind == "whole" and len(data) != rows):
            return False
        if kind == "tokens":
            ends = tensors[f"{tap}.ends"]
            if not _is_index(ends, rows) or bool((ends.diff() < 0).any()) or ends[0] < 0 or ends[-1] != len(data):
                return False
    return True


def _is_index(tensor: Tensor, rows: int) -> bool:
    return tensor.dtype == torch.long and tensor.shape == (rows,)


def _check(path: Path, values: Any, types: Mapping[str, type]) -> None:
    for name, kind in types.items():
        if not isinstance(values, dict) or type(values.get(name)) is not kind:
            raise CheckpointError(path, f"is no manifest of a teacher cache ('{name}' is no {kind.__name__})", DAMAGED)
