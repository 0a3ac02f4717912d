"""Run by test_crash.py: train, die in many ways, resume, and compare with a run that was never disturbed.

    python -m workers.retrieval_crash FOLDER SEED [KILLS]       in tests/; 5 kills in the suite, 200 by hand

Every attempt is a process of its own, killed by a real signal. It is forked from one that has trained before, since
imports cost more than the training. Prints one line of JSON.
"""

import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import threading
import time
import warnings
from contextlib import suppress
from pathlib import Path

import torch
from accelerate import Accelerator
from retrieval import toy
from tqdm.auto import tqdm

import gssf_plug.retrieval.training.best_weights as weights
from gssf_plug.errors import CheckpointError

FORK = multiprocessing.get_context("fork")
REFUSED = 3  # exit code of an attempt that the disk refused, by name
TRAIN_STEPS = 27  # nine epochs of three; a checkpoint every five is mostly in the middle of one


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_inside_checkpoint(call: int) -> None:
    """At the `call`-th checkpoint: some files whole, one cut, then SIGKILL."""
    whole, count = Accelerator.save_state, iter(range(1, 1000))

    def save_state(self, folder):
        if next(count) == call:
            whole(self, folder)
            cut = Path(folder) / "optimizer.bin"
            cut.write_bytes(cut.read_bytes()[:100])
            die()
        return whole(self, folder)

    Accelerator.save_state = save_state


def die_inside_best_weights(call: int) -> None:
    """At the `call`-th write of the best weights: half a temporary file, then SIGKILL."""
    whole, count = weights.save_model, iter(range(1, 1000))

    def save_model(model, path):
        whole(model, path)
        if next(count) == call:
            Path(path).write_bytes(Path(path).read_bytes()[:50])
            die()

    weights.save_model = save_model


def die_after_publishing(call: int) -> None:
    """Between the rename of the `call`-th checkpoint and the deletion of old ones."""
    from gssf_plug.retrieval.training.checkpoints import Checkpoints

    whole, count = Checkpoints.prune, iter(range(1, 1000))

    def prune(self):
        if next(count) == call:
            die()
        whole(self)

    Checkpoints.prune = prune


def fill_disk(size: int) -> None:
    """No file may grow beyond `size` bytes: write() fails in the middle of one, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def attempt(folder: Path, sabotage, argument: int, workers: int) -> None:
    os.setpgrp()  # its reading processes can be ended with it, also one that had not yet learnt its parent's name
    warnings.simplefilter("error")
    if sabotage is not None:
        sabotage(argument)
    trainer = toy.trainer(folder, changes={"num_workers": workers, "checkpoint_every": 5})
    try:
        trainer.train(resume=True)
    except CheckpointError:
        sys.exit(REFUSED)


def start(folder: Path, sabotage=None, argument: int = 0, workers: int = 0):
    process = FORK.Process(target=attempt, args=(folder, sabotage, argument, workers))
    process.start()
    return process


def finish(folder: Path) -> None:
    process = start(folder)
    process.join(60)
    assert process.exitcode == 0, process.exitcode


def state(folder: Path) -> dict:
    """Everything a run leaves, as comparable values, without wall-clock times."""
    checkpoints = sorted((folder / "checkpoints").iterdir())
    found: dict = {"names": [path.name for path in checkpoints], "files": sorted(p.name for p in folder.iterdir())}
    for checkpoint in checkpoints:
        found[f"{checkpoint.name} weights"] = (checkpoint / "model.safetensors").read_bytes()
        found[f"{checkpoint.name} optimizer"] = flat(torch.load(checkpoint / "optimizer.bin"))
        generators = torch.load(checkpoint / "random_states_0.pkl", weights_only=False)
        found[f"{checkpoint.name} generators"] = flat(generators)
        progress = json.loads((checkpoint / "progress.json").read_text())
        progress["progress"].pop("seconds")
        found[f"{checkpoint.name} progress"] = progress
    found["best"] = (folder / "best.safetensors").read_bytes()
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    found["log"] = [{key: value for key, value in line.items() if key != "seconds"} for line in lines]
    return found


def flat(value):
    """Tensors and arrays as lists, for an exact comparison."""
    if isinstance(value, dict):
        return {str(key): flat(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [flat(item) for item in value]
    return value.tolist() if hasattr(value, "tolist") else value


def compare(name: str, folder: Path, expected: dict) -> None:
    got = state(folder)
    assert got.keys() == expected.keys(), f"{name}: {got['names']} for {expected['names']}"
    for key, value in expected.items():
        assert got[key] == value, f"{name}: {key} differs"


def kill_at_random(root: Path, chance: random.Random, seconds: float, wanted: int, expected: dict) -> list[int]:
    """Runs that are killed again and again until they are through; how many checkpoints there were at each kill."""
    kills: list[int] = []
    for number in range(wanted):
        folder = root / f"random{number}"
        while True:
            process = start(folder, workers=chance.choice([0, 0, 0, 1]))
            process.join(chance.uniform(0.1, 0.7) * seconds if len(kills) < wanted else 60)
            if process.is_alive():
                process.kill()
            process.join()
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if process.exitcode == 0:
                break
            assert process.exitcode == -signal.SIGKILL, process.exitcode
            kills.append(len(list(folder.glob("checkpoints/step-*"))))
        compare(f"random kills, run {number}", folder, expected)
        if len(kills) >= wanted:
            break
    return kills


def main(root: Path, seed: int, wanted: int) -> None:
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # its own is shared between forks: one killed while it draws holds it for ever
    chance = random.Random(seed)
    toy.trainer(root / "warm", changes={"epochs": 2}).train()
    clock = time.perf_counter()
    finish(root / "unbroken")
    seconds = time.perf_counter() - clock
    expected = state(root / "unbroken")
    steps = expected["log"][-1]["step"]
    assert steps == TRAIN_STEPS, steps

    again = root / "again"
    finish(again)
    compare("an undisturbed second run", again, expected)

    kills = kill_at_random(root, chance, seconds, wanted, expected)
    for size in (300, 1_200, 2_500, 6_000):  # in the log or the progress, the weights, the best weights, the optimizer
        folder = root / f"full-{size}"
        process = start(folder, fill_disk, size)
        process.join(60)
        assert process.exitcode == REFUSED, f"{folder.name}: {process.exitcode}"
        finish(folder)
        compare(folder.name, folder, expected)

    for sabotage, calls in (
        (die_inside_checkpoint, (1, 4)),
        (die_inside_best_weights, (1,)),
        (die_after_publishing, (3, 6)),
    ):
        for call in calls:
            name = f"{sabotage.__name__}-{call}"
            process = start(root / name, sabotage, call)
            process.join(60)
            assert process.exitcode == -signal.SIGKILL, f"{name}: {process.exitcode}"
            finish(root / name)
            compare(name, root / name, expected)

    folder = root / "terminated"
    process = start(folder)
    while not list(folder.glob("checkpoints/step-*")):
        time.sleep(0.005)
    process.terminate()
    process.join(60)
    stopped = max(int(path.name[5:]) for path in folder.glob("checkpoints/step-*"))
    code = process.exitcode
    finish(folder)
    compare("SIGTERM", folder, expected)
    print(json.dumps({"kills": kills, "steps": steps, "exit": code, "stopped": stopped, "seconds": seconds}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 5)
