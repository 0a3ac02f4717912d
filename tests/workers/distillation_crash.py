"""A DistillationTrainer is killed at random moments and resumed: the same bits as a run that was never disturbed.

    python tests/workers/distillation_crash.py FOLDER [KILLS=10] [SEED=0]

Every attempt is a process of its own, killed by a real SIGKILL, be it in a step, while a checkpoint is written or while
it is read. It is forked from one that has trained before, since imports cost more than the training. Prints JSON.
"""

import json
import multiprocessing
import os
import random
import signal
import sys
import time
import warnings
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from datasets import Dataset
from distillation.models import bert, text, vit
from transformers import TrainingArguments

from gssf_plug.distillation import DistillationTrainer, Distiller
from gssf_plug.errors import CheckpointError

FORK = multiprocessing.get_context("fork")
STEPS = 24


def make(folder: Path) -> DistillationTrainer:
    """Dropout is on, so random state counts; the image student is saved under other names than it has."""
    image = folder.name.startswith("image")
    student = vit(16, 2, seed=1) if image else bert(16, 2, seed=1)
    teacher = vit(24, 2, seed=2) if image else bert(24, 4, seed=2)
    torch.manual_seed(3)
    generator = torch.Generator().manual_seed(4)
    columns = {"pixel_values": torch.randn(20, 3, 16, 16, generator=generator)} if image else text(20)
    args = TrainingArguments(
        str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=4,
        save_strategy="steps",
        save_steps=2,
        save_total_limit=3,
        learning_rate=1e-2,
        logging_steps=3,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    return DistillationTrainer(
        model=student,
        args=args,
        train_dataset=Dataset.from_dict({name: value.tolist() for name, value in columns.items()}),
        distiller=Distiller(student, teacher, "last", ["gssf", "mse"]),
    )


def attempt(folder: Path) -> None:
    """Go on from the last checkpoint, or begin."""
    warnings.simplefilter("ignore")
    sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - for the life of the process
    trainer = make(folder)
    try:
        trainer.train(resume_from_checkpoint=folder.exists() and any(folder.glob("checkpoint-*")))
    except CheckpointError as error:
        if "no finished checkpoint" not in str(error):
            raise
        trainer.train()  # killed before the first checkpoint was whole
    optimizer = trainer.optimizer.state_dict()["state"].items()
    moments = {f"{n} {key}": value for n, state in optimizer for key, value in state.items()}
    torch.save({**trainer.distiller.state_dict(), **moments}, folder / "result.pt")


def start(folder: Path) -> multiprocessing.process.BaseProcess:
    """A process that trains."""
    process = FORK.Process(target=attempt, args=(folder,))
    process.start()
    return process


def kill_until(root: Path, kind: str, wanted: int, seconds: float, chance: random.Random) -> int:
    """Runs that are killed again and again until they are through; the tensors of each, all as the unbroken run's."""
    died, number = 0, 0
    expected = torch.load(root / f"{kind}-whole" / "result.pt")
    while died < wanted:
        folder, number = root / f"{kind}-killed-{number}", number + 1
        while True:
            process = start(folder)
            # Early and late alike; what was done before lets a later attempt come further.
            late = chance.uniform(0.1, 0.9) if died % 2 else chance.uniform(0.3, 0.6)
            process.join(late * seconds if died < wanted else 300)
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
            process.join(60)
            if process.exitcode == 0:
                break
            assert process.exitcode == -signal.SIGKILL, process.exitcode
            died += 1
        found = torch.load(folder / "result.pt")
        equal = [name for name, value in expected.items() if torch.equal(found[name], value)]
        assert len(equal) == len(expected), sorted(expected.keys() - set(equal))
    return len(expected)


def main() -> None:
    """Kill, resume, compare."""
    folder, kills, seed = Path(sys.argv[1]), int((sys.argv[2:3] or [10])[0]), int((sys.argv[3:4] or [0])[0])
    chance, report = random.Random(seed), {}
    for kind in ("text", "image"):
        began = time.monotonic()
        whole = start(folder / f"{kind}-whole")
        whole.join(300)
        assert whole.exitcode == 0, whole.exitcode
        seconds = time.monotonic() - began
        wanted = kills if kind == "text" else max(kills // 2, 2)
        report[kind] = {"killed": wanted, "equal": kill_until(folder, kind, wanted, seconds, chance)}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
