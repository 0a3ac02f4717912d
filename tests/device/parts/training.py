"""RetrievalTrainer on the device in mixed precision: it learns, and killed and resumed it ends where it would have."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from device.record import Record

PROGRAM = """
import sys, warnings; warnings.simplefilter("ignore")
from retrieval import toy
folder, precision = sys.argv[1:]
run = toy.trainer(folder, changes={"mixed_precision": precision, "checkpoint_every": 2})
run.train(resume=True)
"""


def run(record: Record, device: torch.device, quick: bool) -> None:
    environment = os.environ | (
        {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"} if device.type == "cpu" else {}
    )
    for precision in ("bf16",) if quick else ("no", "bf16", "fp16"):
        if precision == "fp16" and device.type == "cpu":
            record.not_run("RetrievalTrainer, fp16", "gradient scaling needs a GPU")
            continue
        with record.step(f"RetrievalTrainer, {precision}"), tempfile.TemporaryDirectory() as folder:
            whole, broken = Path(folder) / "whole", Path(folder) / "broken"
            _train(whole, precision, environment)
            kills = _train_killed(broken, precision, environment)
            record.at_most(
                f"{precision}: killed {kills} times and resumed, largest difference of a weight",
                _difference(whole, broken),
                0.0 if precision == "no" else 1e-3,
            )


def _train(folder: Path, precision: str, environment: dict[str, str]) -> None:
    subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), precision],
        check=True,
        env=environment,
        capture_output=True,
        timeout=60,
    )


def _train_killed(folder: Path, precision: str, environment: dict[str, str]) -> int:
    """SIGKILL once the first checkpoint is there, then resume to the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder), precision], env=environment, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and not list(folder.glob("checkpoints/step-*")):
        time.sleep(0.002)
    killed = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    _train(folder, precision, environment)
    return int(killed)


def _difference(one: Path, other: Path) -> float:
    a, b = (load_file(sorted((folder / "checkpoints").iterdir())[-1] / "model.safetensors") for folder in (one, other))
    return max((a[key].double() - b[key].double()).abs().max().item() for key in a)
