"""How many pairs a structure needs: gain over cosine against the number of training queries.

    cd examples
    python -m studies.data_size                # some twenty minutes on two cores; resumable; tables and curves
    python -m studies.data_size --quick

Frozen features, softmax loss, equal steps; rate by validation with seed 0 for each size; the step by validation, so
that a row that only overfits falls back to cosine.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from shared.runs import finished

from studies.drawing import plot_sizes, row_of
from studies.grid import fill, parser, table
from studies.tasks import load_task
from studies.training import LOSSES, ROWS

SHARES = (1 / 64, 1 / 16, 1 / 4, 1.0)
NAMES = ("cosine", "Diag", "B-Diag 16", "B-Diag 64", "full")


def main() -> None:
    """Run what is missing, print tables, draw the curves."""
    options = parser(__doc__ or "", "data_size").parse_args()
    torch.set_num_threads(1)
    tasks, names, seeds = (("text",), NAMES[:2], 1) if options.quick else (("text", "re-id"), NAMES, options.seeds)
    options.output.mkdir(parents=True, exist_ok=True)
    texts = []
    for name in tasks:
        task, rows = load_task(name, options.cache), {row: ROWS[row] for row in names}
        sizes = {
            share: int(share * len(task.splits["train"].queries)) for share in SHARES[: 2 if options.quick else None]
        }
        for share, queries in sizes.items():
            log = options.output / f"{name}-{share:.4f}.jsonl"
            fill(log, task, rows, LOSSES["softmax"], seeds, encoder="frozen", fraction=share)
            texts.append(table(finished(log), f"{name}, about {queries} training queries", "cosine"))
        draw(options.output, name, names, sizes)
    (options.output / "data_size.md").write_text("\n\n".join(texts) + "\n")
    print("\n\n".join(texts))


def draw(output: Path, name: str, names: tuple[str, ...], sizes: Mapping[float, int]) -> None:
    """Gain over cosine of each row over the sizes."""
    logs = [finished(output / f"{name}-{share:.4f}.jsonl") for share in sizes]
    rows = {
        row: [row_of([run["mAP"] for (other, _), run in log.items() if other == row]) for log in logs] for row in names
    }
    plot_sizes(list(sizes.values()), rows, "cosine").savefig(output / f"data_size_{name}.png", dpi=110)


if __name__ == "__main__":
    main()
