"""Ours beside peers of very different cost: ours runs before and after each peer, so that drift hits both alike.

Seconds are wall time. CPU seconds, of all threads together, hardly move when other jobs share the machine; a peer that
uses one of two cores looks better by them than by the clock.
"""

import argparse
import logging
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import NamedTuple

from measure import machine, peak_megabytes

__all__ = ["compare", "optional", "parse_options"]

Candidate = Callable[[], Mapping[str, float]]


def parse_options(description: str) -> argparse.Namespace:
    """--small, and --only for some of the peers."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--only", default="", help="time only peers whose name holds this")
    return parser.parse_args()


def compare(title: str, ours: Candidate, peers: Mapping[str, Candidate | None], limits: Mapping[str, float]) -> None:
    """Print one Markdown table.

    Args:
        title: what is measured, at which size.
        ours: gives measures by name.
        peers: likewise, under the same names where the measure is the same; None where a package is not installed.
        limits: per peer the ratio claimed, ours ÷ peer, and under "MB" the memory claimed.
    """
    print(f"{title}; {machine()}\n\n| | seconds | CPU s | ours ÷ it | by CPU s | claimed | peak MB | values |")
    print("|---|---:|---:|---:|---:|---:|---:|---|")
    ours()
    own: list[Measured] = []
    for name, peer in peers.items():
        if peer is None:
            print(f"| {name} | not installed | | | | | | |")
            continue
        before, theirs, after = measured(ours), measured(peer), measured(ours)
        own += [before, after]
        wall = (before.seconds + after.seconds) / 2 / theirs.seconds
        cpu = (before.cpu + after.cpu) / 2 / theirs.cpu
        claimed = f"{limits[name]:g}" if name in limits else ""
        agreement = _agreement(before.values, theirs.values)
        cells = f"{theirs.seconds:.2f} | {theirs.cpu:.2f} | {wall:.4f} | {cpu:.4f} | {claimed} | {theirs.peak:,.0f}"
        print(f"| {name} | {cells} | {agreement} |", flush=True)
    seconds, cpu_seconds = ([getattr(run, field) for run in own] for field in ("seconds", "cpu"))
    values = ", ".join(f"{name} {number:.2f}" for name, number in own[0].values.items())
    spread = f"{median(seconds):.2f} ({min(seconds):.2f}–{max(seconds):.2f})"
    peak = max(run.peak for run in own)
    print(
        f"| **gssf_plug** | {spread} | {median(cpu_seconds):.2f} | | | {limits['MB']:g} MB | {peak:,.0f} | {values} |\n"
    )


class Measured(NamedTuple):
    """One call: wall and CPU seconds, peak MB beyond the inputs, result."""

    seconds: float
    cpu: float
    peak: float
    values: Mapping[str, float]


def measured(candidate: Candidate) -> Measured:
    """Timed in one call; memory in another, which takes longer as the allocator then gives every block back."""
    began, cpu = time.perf_counter(), time.process_time()
    values = candidate()
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
    return Measured(seconds, cpu_seconds, peak_megabytes(candidate), values)


def optional(load: Callable[[], Candidate]) -> Candidate | None:
    """The peer, or None where its package is missing."""
    try:
        return load()
    except ImportError as error:
        logging.warning("%s", error)
        return None


def _agreement(ours: Mapping[str, float], theirs: Mapping[str, float]) -> str:
    shared = [name for name in theirs if name in ours]
    parts = []
    if shared:
        largest = max(abs(ours[name] - theirs[name]) for name in shared)
        parts.append(f"{', '.join(shared)} as ours to {largest:.0e}")
    parts += [f"{name} {value:.2f}" for name, value in theirs.items() if name not in ours]
    return "; ".join(parts)
