"""What a part found: rows of claims, measures and things that could not be run, written down one by one."""

import json
import math
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from benchmarks.measure import ratio

__all__ = ["Record", "Row", "compared", "peak_mebibytes", "synchronize", "timed"]


@dataclass(frozen=True)
class Row:
    """One line of the report.

    Args:
        part: the module that found it.
        name: what was looked at.
        outcome: "passed", "failed", "measured" (no claim was made) or "not run".
        value: what came out, as text.
        claim: what had to come out, as text; empty without a claim.
        note: the reason of "not run", the error of "failed".
    """

    part: str
    name: str
    outcome: str
    value: str = ""
    claim: str = ""
    note: str = ""


class Record:
    """Rows of one part, appended to a file as they come, so that a part which is killed leaves what it had.

    Args:
        part: name of the part.
        path: file of JSON lines.
        until: when the part has to be done, by `time.monotonic`; never without it.
    """

    def __init__(self, part: str, path: Path, until: float = math.inf) -> None:
        self.part, self.path, self.until = part, path, until

    def seconds_left(self) -> float:
        """Until the part is stopped; parts that have more to do than fits look at it and say what they left out."""
        return self.until - time.monotonic()

    def add(self, name: str, outcome: str, value: str = "", claim: str = "", note: str = "") -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(Row(self.part, name, outcome, value, claim, note))) + "\n")

    def measured(self, name: str, value: str) -> None:
        self.add(name, "measured", value)

    def at_most(self, name: str, value: float, limit: float, shown: str = "") -> None:
        """The claim value ≤ limit; NaN fails it."""
        self.add(name, "passed" if value <= limit else "failed", shown or f"{value:.3g}", f"≤ {limit:g}")

    def at_least(self, name: str, value: float, limit: float, shown: str = "") -> None:
        self.add(name, "passed" if value >= limit else "failed", shown or f"{value:.3g}", f"≥ {limit:g}")

    def equal(self, name: str, same: bool, note: str = "") -> None:
        self.add(name, "passed" if same else "failed", "equal" if same else "differs", "equal", note)

    def not_run(self, name: str, reason: str) -> None:
        self.add(name, "not run", note=reason)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """An error inside fails this step and no other; a program that was not done in its time has not run."""
        try:
            yield
        except subprocess.TimeoutExpired as late:
            self.not_run(name, f"stopped at its limit of {late.timeout:.0f} s")
        except Exception as error:  # noqa: BLE001 — whatever a device does, the other steps are still worth having
            self.add(name, "failed", note=f"{type(error).__name__}: {error}"[:400])


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(candidates: Mapping[str, Callable[[], object]], device: torch.device, rounds: int) -> dict[str, list[float]]:
    """Seconds of each candidate in each round, in turns, the device waited for on both sides."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(2 + rounds):
        for name in sorted(candidates, reverse=number % 2 == 1):
            synchronize(device)
            began = time.perf_counter()
            candidates[name]()
            synchronize(device)
            if number >= 2:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def compared(seconds: Mapping[str, list[float]], ours: str, theirs: str) -> tuple[float, str]:
    """Median of the paired ratios, and how it is shown."""
    found = ratio(seconds[ours], seconds[theirs])
    return found.value, f"{found} ({1000 * median(seconds[theirs]):.2f} ms {theirs})"


def peak_mebibytes(run: Callable[[], object], device: torch.device) -> str:
    """Highest memory of the device during one call, in MiB beyond what was held before; CPUs are not measured here."""
    if device.type != "cuda":
        return "not measured on a CPU"
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return f"{(torch.cuda.max_memory_allocated(device) - before) / 2**20:,.0f} MiB"
