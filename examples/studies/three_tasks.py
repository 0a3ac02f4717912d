"""What is the metric worth, and when: tasks × {frozen features, heads, encoder from scratch} × losses × structures.

    cd examples
    python -m studies.three_tasks --workers 2              # the better part of an hour on two cores; resumable
    python -m studies.three_tasks --quick                  # seconds: one task, three rows, one seed

The rate of each row is the best of three on validation data with seed 0; five seeds; test data are measured once per
seed. Frozen features are also whitened in closed form, which needs no training. Each table shows mean ± sd over seeds,
the gain over cosine with a learned scale, and p of a paired test over queries.
"""

import argparse
import multiprocessing
from itertools import starmap
from pathlib import Path

import torch
from shared.runs import append, finished

from studies.drawing import Row, plot_gains, row_of
from studies.grid import Runs, beside, fill, parser
from studies.tasks import load_task
from studies.training import LOSSES, ROWS
from studies.whitening import WHITENINGS, whiten

__all__ = ["CELLS", "main"]

BASELINE = "cosine + scale"
CELLS = [
    ("re-id", "frozen"),
    ("image-text", "heads"),
    ("text", "frozen"),
    ("fine-grained", "frozen"),
    ("text", "heads"),
    ("re-id", "heads"),
    ("fine-grained", "heads"),
    ("re-id", "scratch"),
    ("image-text", "scratch"),
    ("fine-grained", "scratch"),
]


def main() -> None:
    """Run what is missing, then print the tables."""
    options = parse_options()
    cells = [(task, state, loss) for task, state in CELLS[: 1 if options.quick else None] for loss in LOSSES]
    work = [(*cell, options) for cell in cells]
    if options.workers == 1:
        list(starmap(run_cell, work))
    else:
        with multiprocessing.get_context("spawn").Pool(options.workers) as pool:
            pool.starmap(run_cell, work, chunksize=1)
    pairs = list(dict.fromkeys((task, state) for task, state, _ in cells))
    text = "\n\n".join(beside(logs_of(options.output, *pair), " · ".join(pair), BASELINE) for pair in pairs)
    (options.output / "three_tasks.md").write_text(text + "\n")
    print(text)
    draw(options.output, pairs)


def draw(output: Path, cells: list[tuple[str, str]]) -> None:
    """Gains of every structure, one picture per kind of encoder."""
    for state in dict.fromkeys(state for _, state in cells):
        panels = {}
        for task in (task for task, other in cells if other == state):
            panels[task] = {loss: rows_of(runs) for loss, runs in logs_of(output, task, state).items()}
        plot_gains(panels, BASELINE).savefig(output / f"gains_{state}.png", dpi=110)


def rows_of(runs: Runs) -> dict[str, Row]:
    """MAP over the seeds, by row."""
    scores: dict[str, list[float]] = {}
    for (name, _), run in runs.items():
        scores.setdefault(name, []).append(run["mAP"])
    return {name: row_of(values) for name, values in scores.items()}


def run_cell(task: str, state: str, loss: str, options: argparse.Namespace) -> None:
    """Every row and seed of one table."""
    torch.set_num_threads(1)
    rows = dict(list(ROWS.items())[: 3 if options.quick else None])
    log = log_of(options.output, task, state, loss)
    loaded = load_task(task, options.cache, pixels=state == "scratch")
    fill(log, loaded, rows, LOSSES[loss], options.seeds, encoder=state)
    for name, by_pairs in WHITENINGS.items() if state == "frozen" else ():
        if (name, 0) not in finished(log):
            run = whiten(loaded, by_pairs)  # nothing is drawn at random: the same for every seed
            for seed in range(options.seeds):
                append(log, name, seed, run)


def logs_of(output: Path, task: str, state: str) -> dict[str, Runs]:
    """The runs of one task and encoder, by loss, rows in the order of a table."""
    order = [*ROWS, *WHITENINGS]
    logs = {loss: finished(log_of(output, task, state, loss)) for loss in LOSSES}
    return {
        loss: dict(sorted(runs.items(), key=lambda item: (order.index(item[0][0]), item[0][1])))
        for loss, runs in logs.items()
    }


def log_of(output: Path, task: str, state: str, loss: str) -> Path:
    """Where the runs of one table are kept."""
    return output / f"{task}-{state}-{loss}.jsonl"


def parse_options() -> argparse.Namespace:
    """The command line."""
    made = parser(__doc__ or "", "three_tasks")
    made.add_argument("--workers", type=int, default=1, help="processes of one thread each")
    options = made.parse_args()
    options.seeds = 1 if options.quick else options.seeds
    options.output.mkdir(parents=True, exist_ok=True)
    return options


if __name__ == "__main__":
    main()
