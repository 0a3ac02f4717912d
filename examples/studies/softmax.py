"""What could make the metric pay beside trained heads in the softmax family? Candidates, one at a time.

    cd examples
    python -m studies.softmax                  # some thirty minutes on two cores; resumable
    python -m studies.softmax --quick

Image–text over frozen features with trained linear heads, InfoNCE with a learned scale, blocks of 16. Candidates: decay
towards neutral (`penalty`), a metric that trains after the heads (delay), lower rates, symmetric and positive
semi-definite matrices, block sizes. Rate (unless it is the candidate) and step by validation; five seeds.
"""

from collections.abc import Callable
from typing import Any

import torch
from runs import finished
from torch import nn

from gssf_plug import GSSFMetric
from studies.grid import fill, parser, table
from studies.tasks import load_task
from studies.training import ROWS, STEPS, Options

BASELINE = "cosine"


def main() -> None:
    """Run what is missing, then print the table."""
    options = parser(__doc__ or "", "softmax").parse_args()
    torch.set_num_threads(1)
    task, log, seeds = load_task("image-text", options.cache), options.output / "softmax.jsonl", options.seeds
    options.output.mkdir(parents=True, exist_ok=True)
    for name, (build, settings) in list(candidates().items())[: 2 if options.quick else None]:
        fill(log, task, {name: build}, "softmax", 1 if options.quick else seeds, heads=True, **settings)
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
        "delay, half of the steps": (both, {"delay": STEPS // 2}),
        "rates 1e-4, 3e-4": (both, {"rates": (1e-4, 3e-4)}),
        "rate 1e-2": (both, {"rates": (1e-2,)}),
        "symmetric": (metric(block_size=16, constraint="symmetric"), {}),
        "psd": (metric(block_size=16, constraint="psd"), {}),
        "both 4": (metric(block_size=4), {}),
        "both 64": (metric(block_size=64), {}),
        "Diag": (ROWS["Diag"], {}),
        "full": (ROWS["full"], {}),
    }


def metric(**settings: Any) -> Callable[[Options], nn.Module]:
    """Diagonal and blocks with these settings."""
    return lambda o: GSSFMetric(o.dim, **settings)


if __name__ == "__main__":
    main()
