"""Does a learned metric carry over: from some vendors to one it never saw; and is an asymmetric W worth anything?

    cd examples
    python -m studies.transfer                 # some fifteen minutes on one core; resumable
    python -m studies.transfer --quick

Re-identification on frozen features, InfoNCE. For each vendor in turn the metric is trained on the drawings of the five
others ("transferred"), and once on those of all six ("native"); then the unseen emoji of that vendor ask all drawings.
A gain that carries over belongs to the features and not to a vendor's style. Then keyword → name on frozen text
features, with W free or symmetric. Rate and step by validation.
"""

import argparse
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from statistics import mean
from typing import Any

import torch
from data.emoji import VENDORS, load_emoji
from torch import Tensor

from gssf_plug import GSSFMetric
from studies.grid import Runs, fill, paired, parser, spread, table
from studies.tasks import Split, Task, load_task
from studies.training import LOSSES, ROWS, Options

NAMES = ("cosine", "Diag", "B-Diag 16", "B-Diag 64")
Run = Mapping[str, Any]


def main() -> None:
    """Run what is missing, print both tables."""
    options = parser(__doc__ or "", "transfer").parse_args()
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    options.seeds = 1 if options.quick else options.seeds
    text = across_vendors(options) + "\n\n" + symmetry(options)
    (options.output / "transfer.md").write_text(text + "\n")
    print(text)


def across_vendors(options: argparse.Namespace) -> str:
    """Gains of transferred and of native metrics on the same queries."""
    task = load_task("re-id", options.cache)
    rows = {name: ROWS[name] for name in NAMES[: 2 if options.quick else None]}
    trained = partial(fill, rows=rows, loss=LOSSES["softmax"], seeds=options.seeds, encoder="frozen")
    vendors = VENDORS[: 1 if options.quick else None]
    everywhere = trained(options.output / "native.jsonl", task)
    found = {
        "the other vendors": [trained(options.output / f"without-{v}.jsonl", without(task, v)) for v in vendors],
        "all vendors": [asked_by(everywhere, task.splits["test"], v) for v in vendors],
    }
    lines = ["**re-id, the drawings of each vendor in turn asking all; learned on …**", ""]
    lines += ["| | learned on | mAP | over cosine, mean of vendors | least | most |", "|---|---|" + "---:|" * 4]
    for name in rows:
        for learned_on, by_vendor in found.items():
            scores = [mean(runs[name, seed]["mAP"] for runs in by_vendor) for seed in range(options.seeds)]
            gains = [paired(runs, name, "cosine")[0] for runs in by_vendor]
            cells = [spread(scores), f"{mean(gains):+.2f}", f"{min(gains):+.2f}", f"{max(gains):+.2f}"]
            lines.append(f"| {name} | {learned_on} | {' | '.join(cells)} |")
    return "\n".join(lines)


def without(task: Task, vendor: str) -> Task:
    """No drawing of this vendor in training and validation; in the test split only its drawings ask."""
    splits = {}
    for name, split in task.splits.items():
        own, everything = drawn_by(name, vendor), torch.ones(len(split.queries), dtype=torch.bool)
        splits[name] = part(split, own, everything) if name == "test" else part(split, ~own, ~own)
    return replace(task, splits=splits)


def drawn_by(split: str, vendor: str) -> Tensor:
    """Which drawings of a split are this vendor's."""
    return torch.tensor([row == vendor for row in load_emoji(split)["vendor"][:]])


def part(split: Split, asks: Tensor, answers: Tensor) -> Split:
    """Some queries and some gallery items of a split."""
    relevant, hidden = (mask[asks][:, answers] for mask in (split.relevant, split.hidden))
    return Split(split.queries[asks], split.gallery[answers], relevant, hidden)


def asked_by(runs: Runs, test: Split, vendor: str) -> dict[tuple[str, int], Run]:
    """The runs as if only this vendor's drawings had asked."""
    counted = test.positive.any(1)  # AP is listed for these queries
    own = drawn_by("test", vendor)[counted]
    chosen = {}
    for key, run in runs.items():
        values = torch.tensor(run["per_query"])[own]
        chosen[key] = {**run, "per_query": values.tolist(), "mAP": values.mean().item()}
    return chosen


def symmetry(options: argparse.Namespace) -> str:
    """Free against symmetric W where queries and gallery are of different kinds; how asymmetric the free ones are."""
    rows = {"cosine": ROWS["cosine"]}
    for size in (16,) if options.quick else (16, 64):
        rows[f"B-Diag {size}, free"] = partial(blocks, block_size=size, constraint=None)
        rows[f"B-Diag {size}, symmetric"] = partial(blocks, block_size=size, constraint="symmetric")
    task, log = load_task("text", options.cache), options.output / "symmetry.jsonl"
    runs = fill(log, task, rows, LOSSES["softmax"], options.seeds, encoder="frozen")
    measured = {name: [run["asymmetry"] for (other, _), run in runs.items() if other == name] for name in rows}
    told = "; ".join(f"{name}: {spread(values)}" for name, values in measured.items() if name != "cosine")
    return table(runs, "text, W free or symmetric", "cosine") + f"\n\n‖W − Wᵀ‖ / ‖W − I‖, 0 where symmetric: {told}."


def blocks(options: Options, *, block_size: int, constraint: str | None) -> GSSFMetric:
    """B-Diag."""
    return GSSFMetric(options.dim, terms=("block_diagonal",), block_size=block_size, constraint=constraint)


if __name__ == "__main__":
    main()
