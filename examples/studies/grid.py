"""Rows × seeds of one table, resumable; what every study prints of them."""

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from shared.runs import append, finished
from torch import nn

from studies.tasks import Task
from studies.training import Options, train

__all__ = ["Runs", "beside", "chance", "fill", "paired", "parser", "spread", "table"]

RATES = (1e-3, 3e-3, 1e-2)
Runs = Mapping[tuple[str, int], Mapping[str, Any]]


def fill(
    log: Path,
    task: Task,
    rows: Mapping[str, Callable[[Options], nn.Module]],
    loss: Callable[[], nn.Module],
    seeds: int,
    *,
    rates: Sequence[float] = RATES,
    **options: Any,
) -> Runs:
    """Train every row with every seed; what the log holds is not run again.

    Args:
        log: one JSON line per run.
        task: features and splits.
        rows: makes the metric, by name.
        loss: makes the loss.
        seeds: 0 … seeds - 1; the rate of a row is the best of `rates` on validation data with seed 0.
        rates: learning rates of the metric.
        options: of `train`.
    """
    for seed in range(seeds):
        for name, build in rows.items():
            done = finished(log)
            if (name, seed) in done:
                continue
            asked = rates if seed == 0 else (done[name, 0]["rate"],)
            runs = [train(task, build, loss(), seed=seed, rate=rate, **options) | {"rate": rate} for rate in asked]
            append(log, name, seed, max(runs, key=lambda run: run["validation"]))
    return finished(log)


def table(runs: Runs, title: str, baseline: str) -> str:
    """One Markdown table: mean ± sd over seeds, the gain over `baseline`, and p of a paired test over queries."""
    lines = [f"**{title}**", "", f"| | parameters | mAP | over {baseline} | p | hubness |", "|---|" + "---:|" * 5]
    for name in dict.fromkeys(name for name, _ in runs):
        rows = [run for (other, _), run in runs.items() if other == name]
        gain, p = paired(runs, name, baseline)
        cells = [f"{rows[0]['parameters']:,}", spread([row["mAP"] for row in rows])]
        cells += ["", ""] if name == baseline else [f"{gain:+.2f}", chance(p)]
        lines.append(f"| {name} | {' | '.join(cells)} | {mean(row['hubness'] for row in rows):.2f} |")
    return "\n".join(lines)


def beside(runs: Mapping[str, Runs], title: str, baseline: str) -> str:
    """One Markdown table for several losses: of each mAP, gain over `baseline` with its p, and hubness."""
    head = " | ".join(f"{loss}: mAP | over {baseline} (p) | hubness" for loss in runs)
    lines = [f"**{title}**", "", f"| | parameters | {head} |", "|---|" + "---:|" * (1 + 3 * len(runs))]
    for name in dict.fromkeys(name for log in runs.values() for name, _ in log):
        cells = []
        for log in runs.values():
            rows = [run for (other, _), run in log.items() if other == name]
            gain, p = paired(log, name, baseline)
            told = "" if name == baseline else f"{gain:+.2f} ({chance(p)})"
            cells += [spread([row["mAP"] for row in rows]), told, f"{mean(row['hubness'] for row in rows):.2f}"]
        lines.append(f"| {name} | {rows[0]['parameters']:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def paired(runs: Runs, ours: str, other: str) -> tuple[float, float]:
    """Mean gain in mAP per query, averaged over seeds, and two-sided p of a paired z-test over queries."""
    gaps = [
        torch.tensor(run["per_query"]) - torch.tensor(runs[other, seed]["per_query"])
        for (name, seed), run in runs.items()
        if name == ours and (other, seed) in runs
    ]
    if not gaps:
        return math.nan, math.nan
    gap = torch.stack(gaps).mean(0)
    error = (gap.std() / len(gap) ** 0.5).item()
    return gap.mean().item(), math.erfc(abs(gap.mean().item()) / error / 2**0.5) if error else 1.0


def chance(p: float) -> str:
    """A p-value; queries about one emoji are not quite independent, so the tiniest are not told apart."""
    return f"{p:.2g}" if p >= 1e-4 else "<0.0001"


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation."""
    return f"{mean(values):.2f} ± {stdev(values):.2f}" if len(values) > 1 else f"{values[0]:.2f}"


def parser(description: str, name: str) -> argparse.ArgumentParser:
    """The options that all studies have."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--seeds", type=int, default=5)
    made.add_argument("--cache", type=Path, default=Path("outputs/studies/features"), help="where features are kept")
    made.add_argument("--output", type=Path, default=Path("outputs/studies") / name)
    made.add_argument("--quick", action="store_true", help="one table, few rows, one seed: shows that it runs")
    return made
