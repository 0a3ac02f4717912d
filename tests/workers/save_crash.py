"""Saves of two configurations in turn, killed at any moment, on a full disk, with readers beside them.

    python -m workers.save_crash FOLDER        # the long form, from tests/: 40 kills and 1,000 reads of each kind
    python -m workers.save_crash FOLDER --kills 5 --reads 0 --kinds adapter
    python -m workers.save_crash FOLDER --fill # FOLDER lies on a small file system of its own, which is filled up

FOLDER is made, on the file system that is to be tried, and removed. One line of JSON per kind comes out: how many kills
met a save half done, what a load found after each (always one of the two, whole), what the next save left lying about;
reads beside two writers that found anything else; and saves that the disk refused, after which the earlier was whole.
Exit code 1 where any of that did not hold.
"""

import argparse
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from gssf_plug import GSSFMetric
from gssf_plug.attention import load_attention, patch_attention
from gssf_plug.distillation import Distiller, Tap, TeacherCache, precompute
from gssf_plug.errors import CheckpointError
from gssf_plug.retrieval import Tower, TwoTower

SMALL = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 9}


@dataclass(frozen=True)
class Kind:
    """One kind of folder: `save` writes one of two configurations, `which` loads it and says which it is.

    `which` gives -1 where parts of both came together.
    """

    save: Callable[[Path, int], object]
    which: Callable[[Path], int]


def bert(layers: int = 1) -> BertModel:
    """A small model whose every weight is the number of its layers."""
    torch.manual_seed(0)
    return BertModel(BertConfig(num_hidden_layers=layers, max_position_embeddings=8, **SMALL)).eval()


def fill(module: nn.Module, value: int) -> nn.Module:
    """Give every parameter one value, so that a mixture of two saves shows."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(value)
    return module


def one_of(found: Tensor, *others: int) -> int:
    """Which of the two saves wrote these values; -1 where they are not all of one."""
    values = {*found.unique().tolist(), *map(float, others)}
    return int(values.pop()) - 1 if len(values) == 1 else -1


def weights(module: nn.Module) -> Tensor:
    """All parameters, as one vector."""
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def metric(which: int) -> GSSFMetric:
    """Another width and other terms for each."""
    made = GSSFMetric(8, block_size=4) if which == 0 else GSSFMetric(512, terms=("diagonal",))
    fill(made, which + 1)
    return made


def adapter(which: int) -> Any:
    """A patch whose layers and block size differ."""
    patch = patch_attention(bert(2), block_size=(2, 4)[which], layers=(None, [1])[which])
    with torch.no_grad():
        for parameter in patch.parameters():
            parameter.fill_(which + 1)
    return patch


def retrieval(which: int) -> TwoTower:
    """Models whose encoders and metrics differ in size."""
    tower = Tower(bert(which + 1), projection=nn.Linear(16, 8) if which else None)
    model = TwoTower(tower, None, GSSFMetric((16, 8)[which], block_size=4))
    fill(model, which + 1)
    return model


def distiller(which: int) -> Distiller:
    """Distillers whose losses' metrics differ."""
    pairs = {"encoder.layer.0": "encoder.layer.0"}
    made = Distiller(bert(), bert(), pairs=pairs, loss=("gssf", "crd")[which])
    made.plan({"input_ids": torch.randint(9, (4, 5))})
    fill(made.losses, which + 1)
    fill(made.projectors, which + 1)
    return made


def adapter_of(folder: Path) -> int:
    """Loaded onto a new model."""
    patch = load_attention(bert(2), folder)
    found = torch.cat([parameter.detach().flatten() for parameter in patch.parameters()])
    return one_of(found, 1 if len(patch.layers) == 2 else 2)


def retrieval_of(folder: Path) -> int:
    """Every part of it."""
    model = TwoTower.from_pretrained(folder)
    return one_of(weights(model), model.image_tower.encoder.config.num_hidden_layers)


def distiller_of(folder: Path) -> int:
    """Whichever of the two takes it: asked in turn, since another save may come between two questions."""
    for which in (0, 1) * 20:
        made = distiller(which)
        try:
            made.load_parts(folder)
        except CheckpointError as error:
            if "another distiller" not in str(error):
                raise
            continue
        return one_of(weights(made.losses), which + 1)
    return -1


MADE: dict[tuple[str, int], Any] = {}


def saver(name: str, make: Callable[[int], Any], method: str = "save_pretrained") -> Callable[[Path, int], object]:
    """Saves what `make` gives, made once."""

    def save(folder: Path, which: int) -> object:
        if (name, which) not in MADE:
            MADE[name, which] = make(which)
        return getattr(MADE[name, which], method)(folder)

    return save


def metric_of(folder: Path) -> int:
    """Values and width."""
    found = GSSFMetric.from_pretrained(folder)
    return one_of(weights(found), 1 if found.dim == 8 else 2)


KINDS = {
    "metric": Kind(saver("metric", metric), metric_of),
    "adapter": Kind(saver("adapter", adapter), adapter_of),
    "retrieval": Kind(saver("retrieval", retrieval), retrieval_of),
    "distiller": Kind(saver("distiller", distiller, "save_parts"), distiller_of),
}


def forked(work: Callable[[], object]) -> int:
    """The number of a process that does `work` and ends."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def saving(kind: Kind, folder: Path, first: int) -> Callable[[], object]:
    """Saves one configuration after the other, as long as this process lives."""
    parent = os.getpid()

    def work() -> None:
        number = first
        while os.getppid() == parent:
            kind.save(folder, number % 2)
            number += 1

    return work


def hidden(folder: Path) -> list[str]:
    """Names of what no user should ever see."""
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def found_in(kind: Kind, folder: Path) -> str:
    """What a load gives: a number, or why it was refused."""
    try:
        return str(kind.which(folder))
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def kills(kind: Kind, folder: Path, times: int) -> dict[str, Any]:
    """SIGKILL at a random moment, `times` times; then one more save, which must leave nothing."""
    kind.save(folder, 0)
    started = time.perf_counter()
    kind.save(folder, 1)
    took = time.perf_counter() - started
    wrong, halfway = [], 0
    for number in range(times):
        child = forked(saving(kind, folder, number))
        time.sleep(random.uniform(0.2, 3.0) * took)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        halfway += bool(hidden(folder))
        found = found_in(kind, folder)
        if found not in ("0", "1"):
            wrong.append(found)
    kind.save(folder, 1)
    return {"kills": times, "halfway": halfway, "wrong": wrong, "left": hidden(folder), "last": found_in(kind, folder)}


def reads(kind: Kind, folder: Path, times: int) -> dict[str, Any]:
    """Loads beside two writers of different configurations."""
    kind.save(folder, 0)
    children = [forked(saving(kind, folder, first)) for first in (0, 1)]
    seen = [found_in(kind, folder) for _ in range(times)]
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    wrong = [found for found in seen if found not in ("0", "1")]
    return {"reads": times, "of each": [seen.count("0"), seen.count("1")], "wrong reads": wrong[:5]}


def full_disk(kind: Kind, folder: Path) -> dict[str, Any]:
    """Saves of the other configuration where no file may become longer than so many bytes."""
    kind.save(folder, 0)
    kind.save(folder, 1)
    sizes = {path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    kind.save(folder, 0)
    refused, wrong = 0, []
    for limit in sorted({size - 1 for size in sizes} | {0, max(sizes) // 2}):

        def work(limit: int = limit) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            try:
                kind.save(folder, 1)
            except CheckpointError as error:
                os._exit(3 if "could not be written" in str(error) else 4)

        _, status = os.waitpid(forked(work), 0)
        refused += os.waitstatus_to_exitcode(status) == 3
        found = found_in(kind, folder)
        if found != "0" or hidden(folder) or os.waitstatus_to_exitcode(status) not in (0, 3):
            wrong.append(f"limit {limit}: {found}, exit {os.waitstatus_to_exitcode(status)}, {hidden(folder)}")
    return {"refused saves": refused, "wrong after them": wrong}


def filled(kind: Kind, folder: Path) -> dict[str, Any]:
    """Saves of the other configuration where the file system has 0, 1, 2 … pages left."""
    refused, wrong, ballast = 0, [], folder.parent / "ballast"
    for pages in range(40):
        kind.save(folder, 0)
        with ballast.open("wb", buffering=0) as file:
            with contextlib.suppress(OSError):
                while file.write(bytes(4096)):
                    pass
            file.truncate(max(file.tell() - 4096 * pages, 0))
        expected = "1"
        try:
            kind.save(folder, 1)
        except CheckpointError as error:
            refused, expected = refused + ("could not be written" in str(error)), "0"
        found = found_in(kind, folder)
        if found != expected or hidden(folder):
            wrong.append(f"{pages} pages: {found} instead of {expected}, {hidden(folder)}")
        ballast.unlink()
    return {"filled": 40, "refused when full": refused, "wrong when full": wrong + ["never full"] * (not refused)}


def cache(folder: Path, times: int) -> dict[str, Any]:
    """A teacher cache whose making is killed again and again; in the end it is that of an unbroken run."""
    rows = [
        {"input_ids": row.tolist()} for row in torch.randint(9, (120, 5), generator=torch.Generator().manual_seed(0))
    ]

    def collate(rows: list[Any]) -> dict[str, Tensor]:
        return {"input_ids": torch.tensor([row["input_ids"] for row in rows])}

    def make(target: Path) -> TeacherCache:
        taps = [Tap("encoder.layer.0")]
        return precompute(bert(), taps, rows, target, collate=collate, batch_size=1, shard_batches=1)

    started = time.perf_counter()
    make(folder / "whole")
    took, wrong, halfway = time.perf_counter() - started, [], 0
    for _ in range(times):
        child = forked(lambda: make(folder / "cache"))
        time.sleep(random.uniform(0.2, 1.5) * took / times)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        halfway += (folder / "cache").is_dir() and bool(hidden(folder / "cache"))
    make(folder / "cache")
    same = all(
        (folder / "cache" / path.name).read_bytes() == path.read_bytes() for path in (folder / "whole").iterdir()
    )
    if not same:
        wrong.append("another cache than that of an unbroken run")
    return {"kills": times, "halfway": halfway, "wrong": wrong, "left": hidden(folder / "cache")}


def main() -> None:
    """Every kind that is asked for; one line of JSON each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--reads", type=int, default=1000)
    parser.add_argument("--kinds", nargs="+", default=[*KINDS, "cache"], choices=[*KINDS, "cache"])
    parser.add_argument("--fill", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random.seed(options.seed)
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    failed = False
    for name in options.kinds:
        folder = options.folder / name
        folder.mkdir(parents=True)
        if name == "cache":
            report = cache(folder, options.kills)
        else:
            kind = KINDS[name]
            report = kills(kind, folder, options.kills) if options.kills else {}
            report |= reads(kind, folder, options.reads) if options.reads else {}
            report |= filled(kind, folder) if options.fill else full_disk(kind, folder)
        shutil.rmtree(options.folder)
        print(json.dumps({"kind": name, **report}), flush=True)
        failed |= any(
            report.get(key) for key in ("wrong", "wrong reads", "wrong after them", "wrong when full", "left")
        )
    sys.exit(failed)


if __name__ == "__main__":
    main()
