"""How cost grows, beside what theory says: fitted exponents of CPU time and memory, and one figure.

python tests/benchmarks/growth.py --figure docs/_static/growth.png     # a minute
python tests/benchmarks/growth.py --small

Each point is the least CPU time of some runs: what the work takes without what other jobs add. An exponent is the slope
of a straight line through logarithms; below the theory it says that constant costs still show.
"""

import argparse
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from measure import machine, peak_anonymous

from gssf_plug import GSSFMetric
from gssf_plug.evaluation import instance_recall
from gssf_plug.losses import InfoNCE
from gssf_plug.losses.chunked import loss_of_pairs


class Curve(NamedTuple):
    """What grows, against what, and the exponent that theory gives it."""

    title: str
    against: str
    theory: float
    sizes: Sequence[int]
    values: list[float]

    @property
    def exponent(self) -> float:
        """Least squares over logarithms."""
        x, y = ([math.log(value) for value in side] for side in (self.sizes, self.values))
        middle = sum(x) / len(x)
        return sum((a - middle) * b for a, b in zip(x, y, strict=True)) / sum((a - middle) ** 2 for a in x)


def least_milliseconds(work: Callable[[], object], runs: int) -> float:
    work()
    times = []
    for _ in range(runs):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return 1000 * min(times)


def loss_step(rows: int, dim: int = 256) -> Callable[[], object]:
    metric, loss, ids = GSSFMetric(dim), InfoNCE(), torch.arange(rows)
    queries, gallery = (torch.randn(rows, dim, requires_grad=True) for _ in range(2))
    return lambda: loss_of_pairs(loss, metric, queries, ids, gallery, ids).backward()


def evaluation(items: int, dim: int = 128) -> Callable[[], object]:
    labels, features = torch.arange(items) % (items // 4), torch.randn(items, dim)
    return lambda: instance_recall(features[:500], labels[:500], gallery=features, gallery_labels=labels)


def fold(dim: int, block: int, rows: int = 2048) -> Callable[[], object]:
    metric, x = GSSFMetric(dim, block_size=block), torch.randn(rows, dim)
    return torch.no_grad()(lambda: metric.fold(x))


def measured(small: bool) -> list[Curve]:
    runs, batches = (2, (64, 128)) if small else (5, (256, 512, 1024, 2048))
    beyond = (256, 512) if small else (2304, 3072, 4096)
    galleries = (1000, 2000) if small else (4000, 8000, 16000, 32000)
    dims, blocks = ((64, 128), (16, 32)) if small else ((256, 512, 1024, 2048), (16, 32, 64, 128, 256))

    def times(make: Callable[[int], Callable[[], object]], sizes: Sequence[int]) -> list[float]:
        return [least_milliseconds(make(size), runs) for size in sizes]

    def peaks(sizes: Sequence[int]) -> list[float]:
        loss_step(sizes[0])()  # what a first call imports and keeps is no cost of the work
        return [peak_anonymous(loss_step(size)) for size in sizes]

    return [
        Curve("loss and gradient, ms", "batch", 2, batches, times(loss_step, batches)),
        Curve("the same, peak MB, whole", "batch", 2, batches, peaks(batches)),
        Curve("the same, peak MB, in strips", "batch", 0, beyond, peaks(beyond)),
        Curve("evaluation, ms", "gallery", 1, galleries, times(evaluation, galleries)),
        Curve("fold, ms, block 16", "dimension", 1, dims, times(lambda dim: fold(dim, 16), dims)),
        Curve("fold, ms, 1,024 wide", "block", 1, blocks, times(lambda block: fold(1024, block), blocks)),
    ]


def draw(curves: Sequence[Curve]) -> Figure:
    """Measured points, and a line of the theory's slope through the last of them."""
    figure = Figure(figsize=(8.8, 5.2), layout="constrained")
    for axis, curve in zip(figure.subplots(2, 3).flat, curves, strict=True):
        last = curve.sizes[-1], curve.values[-1]
        line = [last[1] * (size / last[0]) ** curve.theory for size in curve.sizes]
        axis.loglog(curve.sizes, line, color="#999999", linestyle="--", label=f"theory {curve.theory:g}")
        axis.loglog(curve.sizes, curve.values, marker="o", color="#3b6ea5", label=f"measured {curve.exponent:.2f}")
        every = [*line, *curve.values]
        axis.set(title=curve.title, xlabel=curve.against, ylim=(min(every) / 2, 2 * max(every)))
        axis.set_xticks(curve.sizes, [f"{size:,}" for size in curve.sizes], fontsize=8)
        axis.minorticks_off()
        axis.legend(fontsize=8)
    figure.suptitle("How cost grows: fitted exponents beside the theory", fontsize=10)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--figure", type=Path, help="where to write the figure")
    options = parser.parse_args()
    torch.manual_seed(0)
    curves = measured(options.small)
    print(f"CPU time and memory; {machine()}\n\n| | against | from | to | exponent | theory |")
    print("|---|---|---:|---:|---:|---:|")
    for curve in curves:
        ends = f"{curve.values[0]:.1f} at {curve.sizes[0]:,} | {curve.values[-1]:.1f} at {curve.sizes[-1]:,}"
        print(f"| {curve.title} | {curve.against} | {ends} | {curve.exponent:.2f} | {curve.theory:g} |")
    if options.figure:
        draw(curves).savefig(options.figure, dpi=110)


if __name__ == "__main__":
    main()
