"""Run scripts and worker modules in processes of their own, forked from one that has already imported the libraries.

A new interpreter spends six seconds on imports, which is more than most of these runs take. So one server for each test
process imports them once (`multiprocessing`'s forkserver), and each run is a fork of it: with its own memory,
environment, folder, output, exit code and `__main__`, as if Python had been started with the script. What a launcher
does besides is seen by `tests/examples/test_recipes.py` and by the page on FSDP, which torchrun runs as printed.
"""

import atexit
import gc
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

TESTS = Path(__file__).parents[1]
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "torch._dynamo",  # DDP's constructor asks for it
        "accelerate",
        "datasets",
        "transformers.models.bert.modeling_bert",
        "transformers.trainer",
        "gssf_plug.attention",
        "gssf_plug.distillation",
        "gssf_plug.evaluation",
        "gssf_plug.retrieval",
    ]
)


def run(
    script: Path | str, *arguments: str, cwd: Path, environment: Mapping[str, str] | None = None, timeout: float = 300
) -> "subprocess.CompletedProcess[str]":
    """Like `subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True)`.

    Args:
        script: a file, or the name of a module, as after `python -m`.
        arguments: its `sys.argv[1:]`.
        cwd: the folder that it runs in.
        environment: variables beside those of this process.
        timeout: seconds until it is killed, with its own children, and `subprocess.TimeoutExpired` is raised.
    """
    (done,) = _all([(script, arguments, dict(environment or {}))], cwd, timeout)
    return done


def run_together(
    script: Path | str, words: Sequence[Sequence[str]], cwd: Path, timeout: float = 300
) -> "list[subprocess.CompletedProcess[str]]":
    """Like `run`, once with each of `words`, all beside one another."""
    return _all([(script, each, {}) for each in words], cwd, timeout)


def launch(module: str, folder: Path, processes: int, *arguments: str, timeout: float = 200) -> str:
    """Run `python -m module folder processes …` in so many processes of one gloo group; what they printed.

    Their environment is that which `accelerate launch` makes from `examples/accelerate/cpu.yaml`.
    """
    folder.mkdir(exist_ok=True)
    ranks = [_rank(number, processes) for number in range(processes)] if processes > 1 else [{}]
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        ranks = [rank | address for rank in ranks]
    alone = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    words = (str(folder), str(processes), *arguments)
    done = _all([(module, words, alone | rank) for rank in ranks], TESTS, timeout)
    said = "\n".join(f"rank {number}: {one.stdout}{one.stderr}" for number, one in enumerate(done))
    assert all(one.returncode == 0 for one in done), said
    return "".join(one.stdout for one in done)


def _rank(number: int, processes: int) -> dict[str, str]:
    return {
        "ACCELERATE_MIXED_PRECISION": "no",
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
    }


def _all(
    runs: Sequence[tuple[Path | str, Sequence[str], Mapping[str, str]]], cwd: Path, timeout: float
) -> "list[subprocess.CompletedProcess[str]]":
    """All beside one another; each one's end."""
    with tempfile.TemporaryDirectory() as folder:
        started: list[BaseProcess] = []
        for number, (script, words, environment) in enumerate(runs):
            said = (f"{folder}/{number}.out", f"{folder}/{number}.err")
            started.append(fork(script, words, dict(os.environ) | environment, cwd, said))
        for process in started:
            process.join(timeout)
        late = [process for process in started if process.is_alive()]
        for process in late:
            os.killpg(process.pid, signal.SIGKILL)
            process.join()
        ends = [
            subprocess.CompletedProcess(
                [str(script), *words],
                process.exitcode,
                Path(folder, f"{number}.out").read_text(),
                Path(folder, f"{number}.err").read_text(),
            )
            for number, (process, (script, words, _)) in enumerate(zip(started, runs, strict=True))
        ]
    if late:
        raise subprocess.TimeoutExpired([str(runs[0][0])], timeout, ends[0].stdout, ends[0].stderr)
    return ends


def fork(
    script: Path | str, words: Sequence[str], environment: Mapping[str, str], cwd: Path, said: Sequence[str]
) -> BaseProcess:
    """Start `python script words` with exactly this environment; what it prints goes into the two files `said`."""
    process = SERVER.Process(target=_main, args=(script, words, dict(environment), cwd, said))
    process.start()
    return process


def _main(
    script: Path | str, words: Sequence[str], environment: dict[str, str], cwd: Path, said: Sequence[str]
) -> None:
    """In the fork: become `python script words`."""
    gc.freeze()  # a collection would write into, and so copy, every page of what the server has imported
    os.setsid()
    for target, path in ((1, said[0]), (2, said[1])):
        os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY), target)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.stdout.reconfigure(line_buffering=True)  # whoever reads along, and whoever kills it, sees what was said
    import torch  # there since the server began

    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", os.cpu_count() or 1)))  # read at import only
    sys.path[:0] = [folder for folder in environment.get("PYTHONPATH", "").split(os.pathsep) if folder]
    sys.argv = [str(script), *words]
    try:
        if isinstance(script, Path):
            sys.path.insert(0, str(script.parent))
            runpy.run_path(str(script), run_name="__main__")
        else:
            sys.path.insert(0, str(TESTS))
            runpy.run_module(script, run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # multiprocessing leaves without them
        sys.stdout.flush()
        sys.stderr.flush()
