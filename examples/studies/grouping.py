"""Does it matter which channels share a block: contiguous, random, found from data (`group_channels`).

    cd examples
    python -m studies.grouping                 # some ten minutes on two cores; resumable
    python -m studies.grouping --quick

Frozen features, blocks of 16 without a diagonal of their own, softmax loss; rate and step by validation.
"""

from collections.abc import Callable

import torch
from shared.runs import finished
from torch import Tensor, nn

from gssf_plug import GSSFMetric
from gssf_plug.metric import group_channels
from studies.grid import fill, parser, table
from studies.tasks import Task, load_task
from studies.training import LOSSES, ROWS, Options

BLOCK = 16


def main() -> None:
    """Run what is missing, then print the tables."""
    options = parser(__doc__ or "", "grouping").parse_args()
    torch.set_num_threads(1)
    tasks, seeds = (("text",), 1) if options.quick else (("text", "re-id"), options.seeds)
    options.output.mkdir(parents=True, exist_ok=True)
    texts = []
    for name in tasks:
        task, log = load_task(name, options.cache), options.output / f"{name}.jsonl"
        fill(log, task, rows(task), LOSSES["softmax"], seeds, encoder="frozen")
        texts.append(table(finished(log), f"{name}, B-Diag {BLOCK}", "contiguous"))
    (options.output / "grouping.md").write_text("\n\n".join(texts) + "\n")
    print("\n\n".join(texts))


def rows(task: Task) -> dict[str, Callable[[Options], nn.Module]]:
    """The groupings, all from training data."""
    split = task.splits["train"]
    queries, items = split.pairs.T
    chosen = torch.randperm(len(queries), generator=torch.Generator().manual_seed(0))[:8000]
    x, y = split.queries[queries[chosen]], split.gallery[items[chosen]]
    dim = x.shape[1]
    return {
        "cosine": ROWS["cosine"],
        "contiguous": grouped(None),
        "random": grouped(torch.randperm(dim, generator=torch.Generator().manual_seed(1))),
        "group_channels": grouped(group_channels(x, y, BLOCK)),
    }


def grouped(grouping: Tensor | None) -> Callable[[Options], nn.Module]:
    """B-Diag with this grouping."""
    return lambda o: GSSFMetric(
        o.dim, terms=("block_diagonal",), block_size=BLOCK, grouping=grouping, constraint=o.constraint
    )


if __name__ == "__main__":
    main()
