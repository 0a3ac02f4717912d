"""Ours beside peers of very different cost: ours runs before and after each peer, so that drift hits both alike."""

import logging
import time
from collections.abc import Callable, Mapping
from statistics import median

from measure import machine, peak_megabytes

__all__ = ["compare", "optional"]

Candidate = Callable[[], Mapping[str, float]]


def compare(title: str, ours: Candidate, peers: Mapping[str, Candidate | None], limits: Mapping[str, float]) -> None:
    """Print one Markdown table.

    Args:
        title: what is measured, at which size.
        ours: gives measures by name.
        peers: likewise, under the same names where the measure is the same; None where a package is not installed.
        limits: per peer the ratio claimed, ours ÷ peer, and under "MB" the memory claimed.
    """
    print(f"{title}; {machine()}\n\n| | seconds | ours ÷ it | claimed | peak MB beyond the inputs | values |")
    print("|---|---:|---:|---:|---:|---|")
    ours()
    own_seconds, own_peaks, value = [], [], ours()
    for name, peer in peers.items():
        if peer is None:
            print(f"| {name} | not installed | | | | |")
            continue
        before, peak, value = measured(ours)
        seconds, peer_peak, theirs = measured(peer)
        after, _, _ = measured(ours)
        own_seconds += [before, after]
        own_peaks.append(peak)
        claimed = f"{limits[name]:g}" if name in limits else ""
        shown = f"{(before + after) / 2 / seconds:.4f}"
        print(
            f"| {name} | {seconds:.2f} | {shown} | {claimed} | {peer_peak:,.0f} | {_agreement(value, theirs)} |",
            flush=True,
        )
    values = ", ".join(f"{name} {number:.2f}" for name, number in value.items())
    print(
        f"| **gssf_plug** | {median(own_seconds):.2f} ({min(own_seconds):.2f}–{max(own_seconds):.2f}) | | "
        f"{limits['MB']:g} MB | {max(own_peaks):,.0f} | {values} |\n"
    )


def measured(candidate: Candidate) -> tuple[float, float, Mapping[str, float]]:
    """Seconds, peak MB and result of one call."""
    kept: dict[str, object] = {}

    def call() -> None:
        began = time.perf_counter()
        kept["result"] = candidate()
        kept["seconds"] = time.perf_counter() - began

    peak = peak_megabytes(call)
    return kept["seconds"], peak, kept["result"]


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
