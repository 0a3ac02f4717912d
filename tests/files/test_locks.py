"""Turns among processes that share a folder, and what happens where there are no locks."""

import os
import time

import pytest
import torch

from gssf_plug import GSSFMetric
from gssf_plug.errors import CheckpointError
from gssf_plug.files import locks


def test_who_waits_too_long_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE_S", 0.05)
    with locks.locked(tmp_path):
        with pytest.raises(CheckpointError, match="another process has held .* for 0.05 seconds"):
            GSSFMetric(8, block_size=4).save_pretrained(tmp_path)
        with locks.locked_if_free(tmp_path) as free:
            assert not free
    with locks.locked(tmp_path, shared=True), locks.locked(tmp_path, shared=True):
        pass


def test_without_locks_only_old_leftovers_go(tmp_path, monkeypatch):
    """As on Windows, and on network drives without locks."""
    monkeypatch.setattr(locks, "fcntl", None)
    for name in ("old", "new"):
        (tmp_path / f".saving-{name}").mkdir()
    long_ago = time.time() - 2 * locks.OLD_S
    os.utime(tmp_path / ".saving-old", (long_ago, long_ago))
    metric = GSSFMetric(8, block_size=4)
    metric.save_pretrained(tmp_path)
    assert (tmp_path / ".saving-new").is_dir()
    assert not (tmp_path / ".saving-old").exists()
    assert torch.equal(GSSFMetric.from_pretrained(tmp_path).matrix(), metric.matrix())
