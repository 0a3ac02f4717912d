"""Start a worker module of this folder in real processes, by Accelerate's launcher as users do."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
TWO_ON_CPU = TESTS.parent / "examples" / "accelerate" / "cpu.yaml"


def launch(module: str, folder: Path, processes: int, *arguments: str, timeout: int = 200) -> str:
    """Run `python -m module folder processes …` in so many processes; what they printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS), "CUDA_VISIBLE_DEVICES": ""}
    launcher = ["-m", "accelerate.commands.launch", "--config_file", str(TWO_ON_CPU)]
    launcher = [*launcher, "--num_processes", str(processes), "--main_process_port", "0"] if processes > 1 else []
    command = [sys.executable, *launcher, "-m", module, str(folder), str(processes), *arguments]
    folder.mkdir(exist_ok=True)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, cwd=TESTS)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
