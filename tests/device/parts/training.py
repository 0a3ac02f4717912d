"""RetrievalTrainer on the device in mixed precision: it learns, and killed and resumed it ends where it would have."""

import json
import multiprocessing
import os
import tempfile
import time
import warnings
from pathlib import Path

import torch
from retrieval import toy
from safetensors.torch import load_file

from device.record import Record

FORK = multiprocessing.get_context("fork")  # this process never touches the device, and has the imports
SECONDS = 60


def run(record: Record, device: torch.device, quick: bool) -> None:
    if device.type == "cpu":
        os.environ |= {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
    for precision in ("bf16",) if quick else ("no", "bf16", "fp16"):
        if precision == "fp16" and device.type == "cpu":
            record.not_run("RetrievalTrainer, fp16", "gradient scaling needs a GPU")
            continue
        with record.step(f"RetrievalTrainer, {precision}"), tempfile.TemporaryDirectory() as folder:
            whole, broken = Path(folder) / "whole", Path(folder) / "broken"
            _train(whole, precision)
            kills = _train_killed(broken, precision)
            record.at_most(
                f"{precision}: killed {kills} times and resumed, largest difference of a weight",
                _difference(whole, broken),
                0.0 if precision == "no" else 1e-3,
            )
            record.at_least(f"{precision}: rsum after the last step ÷ at the first look", _progress(whole), 1.3)
            record.measured(f"{precision}: peak memory", (whole / "peak").read_text())


def _run(folder: Path, precision: str) -> None:
    """In a process of its own."""
    warnings.simplefilter("ignore")
    trainer = toy.trainer(folder, changes={"mixed_precision": precision, "checkpoint_every": 2})
    trainer.train(resume=True)
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    shown = f"{torch.cuda.max_memory_allocated() / 2**20:,.1f} MiB" if cuda else "not measured on a CPU"
    (folder / "peak").write_text(shown)


def _started(folder: Path, precision: str) -> multiprocessing.context.ForkProcess:
    process = FORK.Process(target=_run, args=(folder, precision))
    process.start()
    return process


def _train(folder: Path, precision: str) -> None:
    process = _started(folder, precision)
    process.join(SECONDS)
    if process.exitcode != 0:
        process.kill()
        process.join()
        raise RuntimeError(f"a run in {precision} ended with {process.exitcode} within {SECONDS} s")


def _train_killed(folder: Path, precision: str) -> int:
    """SIGKILL once the first checkpoint is there, then resume to the end."""
    process = _started(folder, precision)
    while process.is_alive() and not list(folder.glob("checkpoints/step-*")):
        time.sleep(0.002)
    killed = process.is_alive()
    process.kill()
    process.join()
    _train(folder, precision)
    return int(killed)


def _progress(folder: Path) -> float:
    rows = map(json.loads, (folder / "log.jsonl").read_text(encoding="utf-8").splitlines())
    sums = [row["rsum"] for row in rows if row["kind"] == "eval"]
    return float(sums[-1] / sums[0])


def _difference(one: Path, other: Path) -> float:
    a, b = (load_file(sorted((folder / "checkpoints").iterdir())[-1] / "model.safetensors") for folder in (one, other))
    return max((a[key].double() - b[key].double()).abs().max().item() for key in a)
