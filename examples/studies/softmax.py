"""What could make the metric pay beside trained heads in the softmax family? Candidates, one at a time.

    cd examples
    python -m studies.softmax                  # some thirty minutes on two cores; resumable
    python -m studies.softmax --quick

Image–text over frozen features with trained linear heads, InfoNCE with a learned scale, blocks of 16. Candidates: decay
towards neutral (`penalty`), metric and heads trained one after the other, lower rates, symmetric and positive
semi-definite matrices, block sizes, another grouping (which trained heads can undo by themselves), a diagonal that
depends on the query, one metric per direction. Rate (unless it is the candidate) and step by validation; five seeds.
"""

from collections.abc import Callable
from typing import Any

import torch
from shared.runs import finished
from torch import nn

from gssf_plug import GSSFMetric
from studies.candidates import ConditionedDiagonal, PerDirection, PerDirectionSoftmax
from studies.grid import fill, parser, table
from studies.tasks import load_task
from studies.training import LOSSES, ROWS, STEPS, WIDTH, Options

BASELINE = "cosine"


def main() -> None:
    """Run what is missing, then print the table."""
    options = parser(__doc__ or "", "softmax").parse_args()
    torch.set_num_threads(1)
    task, log, seeds = load_task("image-text", options.cache), options.output / "softmax.jsonl", options.seeds
    options.output.mkdir(parents=True, exist_ok=True)
    chosen = list(candidates().items())
    for name, (build, settings) in chosen[:2] + chosen[-2:] if options.quick else chosen:
        asked = {"loss": LOSSES["softmax"], "seeds": 1 if options.quick else seeds, "encoder": "heads", **settings}
        fill(log, task, {name: build}, **asked)
    text = table(finished(log), "image-text · heads · softmax", BASELINE)
    (options.output / "softmax.md").write_text(text + "\n")
    print(text)


def candidates() -> dict[str, tuple[Callable[[Options], nn.Module], dict[str, Any]]]:
    """Each row's metric and its options of training."""
    both = metric(block_size=16)
    return {
        "cosine": (ROWS["cosine"], {}),
        "cosine + scale": (ROWS["cosine + scale"], {}),
        "both 16": (both, {}),
        "penalty 1e-2": (both, {"penalty": 1e-2}),
        "penalty 1e-1": (both, {"penalty": 1e-1}),
        "metric from half of the steps": (both, {"metric_from": STEPS // 2}),
        "heads, then the metric alone": (both, {"metric_from": STEPS // 2, "encoder_until": STEPS // 2}),
        "metric, then both": (both, {"encoder_from": STEPS // 3}),
        "rates 1e-4, 3e-4": (both, {"rates": (1e-4, 3e-4)}),
        "rate 1e-2": (both, {"rates": (1e-2,)}),
        "symmetric": (metric(block_size=16, constraint="symmetric"), {}),
        "psd": (metric(block_size=16, constraint="psd"), {}),
        "both 4": (metric(block_size=4), {}),
        "both 64": (metric(block_size=64), {}),
        "Diag": (ROWS["Diag"], {}),
        "full": (ROWS["full"], {}),
        "both 16, random groups": (
            metric(block_size=16, grouping=torch.randperm(WIDTH, generator=torch.Generator().manual_seed(1))),
            {},
        ),
        "one metric per direction": (lambda o: PerDirection(o.dim, 16), {"loss": PerDirectionSoftmax}),
        "diagonal of the query": (lambda o: ConditionedDiagonal(o.dim, 8), {}),
    }


def metric(**settings: Any) -> Callable[[Options], nn.Module]:
    """Diagonal and blocks with these settings."""
    return lambda o: GSSFMetric(o.dim, **settings)


if __name__ == "__main__":
    main()
