"""Resumable runs of a table: one JSON line per (row, seed); mean ± spread; a paired test of ours and the best other.

`--workers 2` shares the runs between processes of one thread each, which suits small models better than two threads in
one process. A killed table goes on where it stopped.

The paired test flips signs of differences per held-out item (the mean over seeds of each item, 10,000 draws): it asks
whether the two rows differ on other items. The spread over seeds stands beside it: whether they differ in other runs.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from tqdm.auto import tqdm

__all__ = ["add_options", "append", "difference", "fill", "finished", "render"]

Runs = Mapping[tuple[str, int], Mapping[str, Any]]


def add_options(parser: argparse.ArgumentParser, folder: Path) -> None:
    """The options of every table."""
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--split", choices=("validation", "test"), default="test", help="choose recipes on validation")
    parser.add_argument("--only", nargs="*", default=[], help="names of rows")
    parser.add_argument("--out", type=Path, default=folder)
    parser.add_argument("--workers", type=int, default=1, help="processes that share the runs")
    parser.add_argument("--part", type=int, help=argparse.SUPPRESS)  # which share a worker has
    parser.add_argument("--quick", action="store_true", help="a smoke test: one seed, next to no training")


def fill(
    options: argparse.Namespace, names: Sequence[str], run: Callable[[str, int], Mapping[str, Any]], main: bool = True
) -> Runs:
    """Every row with every seed; what the log holds is not run again. Returns the log once all is there.

    Args:
        options: of `add_options`.
        names: rows; `options.only` chooses among them.
        run: name, seed -> measures.
        main: whether this process writes the log (others of `accelerate launch` only take part in the runs).
    """
    log = options.out / "runs.jsonl"
    kept = finished(log)
    chosen = [name for name in names if not options.only or name in options.only]
    every = [(name, seed) for seed in range(options.seeds) for name in chosen]
    if options.workers > 1 and options.part is None:
        if not kept.keys() >= {*every}:
            _share(options.workers)
        return finished(log)
    todo = [pair for pair in every[options.part or 0 :: options.workers] if pair not in kept]
    for name, seed in tqdm(todo, desc="students", disable=not main):
        result = run(name, seed)
        if main:
            append(log, name, seed, result)
    return finished(log)


def _share(workers: int) -> None:
    """The same command once per worker, with one thread each."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    commands = [[sys.executable, *sys.argv, "--part", str(part)] for part in range(workers)]
    processes = [subprocess.Popen(command, env=environment) for command in commands]
    if any([process.wait() for process in processes]):  # noqa: C419 - wait for all, also after a failure
        raise SystemExit("A worker failed; what the others finished is kept. Run the same command again.")


def append(log: Path, name: str, seed: int, result: Mapping[str, Any]) -> None:
    """Keep one finished run."""
    log.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps({"name": name, "seed": seed, **result}) + "\n"
    with log.open("ab", buffering=0) as file:  # one write: two processes may fill one log
        file.write(line.encode())


def finished(log: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """The runs of a log; a last line cut off by a kill is left out."""
    runs = {}
    for line in log.read_text(encoding="utf-8").splitlines() if log.exists() else []:
        try:
            run = json.loads(line)
        except json.JSONDecodeError:
            continue
        runs[run.pop("name"), run.pop("seed")] = run
    return runs


def render(runs: Runs, columns: Sequence[str], names: Sequence[str]) -> str:
    """A Markdown table of the rows in `names` that have run, mean ± standard deviation over seeds."""
    lines = ["| objective | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    names = [name for name in names if any(other == name for other, _ in runs)]
    for name in names:
        lines.append(f"| {name} | " + " | ".join(_cell(_by_seed(runs, name, column)) for column in columns) + " |")
    seeds = max((len([1 for other, _ in runs if other == name]) for name in names), default=0)
    return "\n".join(lines) + f"\n\n{seeds} seed(s), mean ± standard deviation, in %.\n"


def difference(runs: Runs, column: str, ours: Iterable[str]) -> str:
    """One sentence: the best of ours against the best of the others in a column, with the paired test."""
    names = list(dict.fromkeys(name for name, _ in runs))
    best = {}
    for side in (True, False):
        found = [name for name in names if (name in set(ours)) == side]
        if not found:
            return f"{column}: nothing to compare"
        best[side] = max(found, key=lambda name: mean(_by_seed(runs, name, column)))
    a, b = (_by_seed(runs, best[side], column) for side in (True, False))
    gaps = [x - y for x, y in zip(a, b, strict=False)]
    items = _by_item(runs, best[True], column) - _by_item(runs, best[False], column)
    return f"{column}: {best[True]} − {best[False]} = {_cell(gaps)} over seeds, p = {_sign_flip(items):.4f} over items"


def _by_seed(runs: Runs, name: str, column: str) -> list[float]:
    return [mean(run[column]) for (other, _), run in sorted(runs.items()) if other == name]


def _by_item(runs: Runs, name: str, column: str) -> torch.Tensor:
    return torch.tensor([run[column] for (other, _), run in runs.items() if other == name]).double().mean(0)


def _sign_flip(differences: torch.Tensor, draws: int = 10_000) -> float:
    generator = torch.Generator().manual_seed(0)
    observed = differences.mean().abs()
    signs = torch.randint(0, 2, (draws, len(differences)), generator=generator, dtype=torch.int8) * 2 - 1
    flipped = torch.cat([(part.double() @ differences / len(differences)).abs() for part in signs.split(1000)])
    return (1 + int((flipped >= observed - 1e-12).sum())) / (1 + draws)


def _cell(values: Sequence[float]) -> str:
    return f"{mean(values):.1f} ± {stdev(values) if len(values) > 1 else 0.0:.1f}"
