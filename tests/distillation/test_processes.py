"""Two real processes give the gradients of one with the whole batch: tokens by hand, and the Trainer (F8).

The Trainer also with activation checkpointing, torch_compile and bf16.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).parents[1] / "workers" / "distillation_processes.py"


@pytest.mark.slow
def test_two_processes_have_the_gradient_of_the_whole_batch(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(Path(__file__).parents[2] / "examples" / "accelerate" / "cpu.yaml"),
        "--num_processes=2",
        "--main_process_port=0",
        str(WORKER),
        str(tmp_path),
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    assert "2 processes agree" in done.stdout
