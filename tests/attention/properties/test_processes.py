"""A patched model in two real processes: DDP, and FSDP2 (`fully_shard`) with its files."""

from pathlib import Path

from workers.launching import launch


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    assert "2 processes agree" in launch("workers.attention_processes", tmp_path, 2, timeout=300)
