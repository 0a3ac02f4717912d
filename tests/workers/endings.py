"""Run by test_endings.py: pairs of processes that train, and how they end. Prints one line of JSON for each pair.

    python -m workers.endings FOLDER ENDING [RUNS]

A pair is forked from one process that has imported everything, since imports cost more than the training, and its
members really take Python down at their end. Run it by hand with many RUNS on a busy machine: no code but the expected
one may come. ENDING:

    end         train, and nothing more            0
    destroyed   …, and leave the process group     0
    collective  …, and gather 200 times, at once   0
    raises      …, then one raises, and the other waits for it in a collective    1
    interrupted …, and Ctrl-C for both             -2 (SIGINT)
"""

import atexit
import gc
import importlib
import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import torch
from accelerate import PartialState
from retrieval import toy
from torch.nn.parallel import DistributedDataParallel

from gssf_plug.distributed import gather

PATIENCE = 120.0  # seconds of this process's own waiting: a machine that stands still is no hang


def gloo_threads() -> int:
    """Threads of gloo's groups in this process."""
    return sum(path.read_text().strip() == "pt_gloo_runloop" for path in Path("/proc/self/task").glob("*/comm"))


def start_no_more_threads() -> None:
    """As Python since 3.12 once it ends."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    threading.Thread.start = refuse


def train(folder: Path, rank: int, ending: str) -> None:
    global trainer  # alive while Python is taken down, as at the end of a user's script
    trainer = toy.trainer(folder / "run", changes={"epochs": 1})
    assert trainer.accelerator.num_processes == 2
    assert isinstance(trainer.objective, DistributedDataParallel)
    atexit.register(start_no_more_threads)  # runs before ours, which the trainer has registered
    trainer.train()
    (folder / f"during{rank}").write_text(str(gloo_threads()))
    if ending == "destroyed":
        PartialState().destroy_process_group()
    if ending == "collective":
        for _ in range(200):
            gather(torch.ones(3))
    if ending == "raises":
        if rank == 1:
            raise ZeroDivisionError
        gather(torch.ones(3))
    if ending == "interrupted":
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)


def become(folder: Path, rank: int, port: int) -> None:
    """This process is one of the pair now."""
    quiet = os.open(folder / f"said{rank}", os.O_CREAT | os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", **address)
    atexit.register(lambda: (folder / f"left{rank}").write_text(str(gloo_threads())))  # runs after ours


def wait_for(pids: list[int]) -> list[int | None]:
    """Exit codes; None for one that had to be killed."""
    codes: dict[int, int | None] = {}
    waited = 0.0
    while len(codes) < len(pids):
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            codes[pid] = os.waitstatus_to_exitcode(status)
        elif waited > PATIENCE:
            for left in set(pids) - set(codes):
                os.kill(left, signal.SIGKILL)
                os.waitpid(left, 0)
                codes[left] = None
        else:
            time.sleep(0.01)
            waited += 0.01
    return [codes[pid] for pid in pids]


def main(root: Path, ending: str, runs: int) -> tuple[Path, int] | None:
    """Fork the pairs; in one of their members, its folder and rank."""
    torch.set_num_threads(1)
    importlib.import_module("torch._dynamo")  # as DDP's constructor does
    gc.freeze()  # a collection in a member would write into, and so copy, every page of what is imported
    for number in range(runs):
        folder = root / f"{ending}{number}"
        folder.mkdir(parents=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        pids = []
        for rank in (0, 1):
            pids.append(os.fork())
            if pids[-1] == 0:
                become(folder, rank, port)
                return folder, rank
        codes = wait_for(pids)
        during, left = ([int((folder / f"{name}{rank}").read_text()) for rank in (0, 1)] for name in ("during", "left"))
        print(json.dumps({"ending": ending, "codes": codes, "during": during, "left": left}), flush=True)
    return None


if __name__ == "__main__":
    for ending in sys.argv[2].split(","):
        member = main(Path(sys.argv[1]), ending, int(sys.argv[3]) if len(sys.argv) > 3 else 1)
        if member is not None:
            train(*member, ending)
            break
