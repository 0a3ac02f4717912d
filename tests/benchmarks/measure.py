"""How every benchmark here measures: candidates interleaved in one process, medians of ratios, peak memory.

Run alone on an otherwise idle machine. Ratios carry to other machines far better than seconds do.
"""

import ctypes
import gc
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h

__all__ = ["Ratio", "interleave", "machine", "peak_anonymous", "peak_megabytes", "ratio"]


@dataclass(frozen=True)
class Ratio:
    """Median of the paired ratios, with a 95% bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def interleave(candidates: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 2) -> dict[str, list[float]]:
    """Seconds of each candidate in each round; the order within a round changes, so that drift hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    order, shuffle = list(candidates), random.Random(0)
    for number in range(warmup + rounds):
        shuffle.shuffle(order)
        for name in order:
            began = time.perf_counter()
            candidates[name]()
            if number >= warmup:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def ratio(ours: list[float], theirs: list[float], draws: int = 2000) -> Ratio:
    """Ours ÷ theirs, paired by round."""
    pairs = [a / b for a, b in zip(ours, theirs, strict=True)]
    rng = random.Random(0)
    boots = sorted(median(rng.choices(pairs, k=len(pairs))) for _ in range(draws))
    return Ratio(median(pairs), boots[int(0.025 * draws)], boots[int(0.975 * draws)])


def peak_megabytes(candidate: Callable[[], object]) -> float:
    """Extra resident memory at its highest during one call, in MB (10⁶ bytes); Linux with glibc only.

    Large blocks are taken from and given back to the kernel at once, so the peak is what was live together; and what
    earlier calls freed does not hide what this one takes.
    """
    with _blocks_given_back(2**20):
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
        before = _status("VmRSS")
        result = candidate()
        high = _status("VmHWM")
        del result
    return (high - before) * 1024 / 1e6


def peak_anonymous(candidate: Callable[[], object]) -> float:
    """Likewise of anonymous memory, read every few milliseconds: for small peaks, and for memory maps.

    Pages of files do not count: not a map that is read, nor libraries that a busy machine had put out of memory.
    """
    done, seen = threading.Event(), []

    def watch() -> None:
        while not done.is_set():
            seen.append(_status("RssAnon"))
            time.sleep(0.004)

    with _blocks_given_back(2**16):
        before, watcher = _status("RssAnon"), threading.Thread(target=watch)
        watcher.start()
        candidate()
        done.set()
        watcher.join()
    return (max(seen) - before) * 1024 / 1e6


@contextmanager
def _blocks_given_back(threshold: int) -> Iterator[None]:
    """The allocator keeps no free block from `threshold` bytes; afterwards as it was."""
    gc.collect()
    libc = ctypes.CDLL("libc.so.6")
    libc.mallopt(M_MMAP_THRESHOLD, threshold)
    libc.malloc_trim(0)
    yield
    libc.mallopt(M_MMAP_THRESHOLD, 2**25)  # what glibc grows to by itself; else later timings pay for fresh pages
    libc.mallopt(M_TRIM_THRESHOLD, 2**26)


def machine() -> str:
    """One line for the table: cores, torch, threads."""
    import os
    import platform

    import torch

    return (
        f"{os.cpu_count()} cores ({platform.machine()}), torch {torch.__version__}, {torch.get_num_threads()} threads"
    )


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1])
    raise AssertionError(f"{key} is not in /proc/self/status")
