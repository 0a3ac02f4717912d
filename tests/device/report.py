"""Run the parts, each in a process of its own with a time limit, and write one Markdown and one JSON report.

A part that is not there in time, dies or misses something says so as "not run" or "failed"; it never counts as passed.
"""

import argparse
import contextlib
import importlib
import json
import multiprocessing
import sys
import time
from pathlib import Path

import torch

from device.record import Record, Row

FORK = multiprocessing.get_context("fork")
PARTS = {
    "environment": 30, "metric": 60, "losses": 40, "ranking": 60, "processes": 30, "attention_types": 110,
    "attention_speed": 110, "decoding": 80, "distillation": 50, "training": 80, "search": 90,
    "attention_types_speed": 300,
}  # fmt: skip
"""Seconds that each part may take at most, in the order of running; the last takes what is left of the whole."""
TOTAL_SECONDS = 590


def sees(device: str) -> bool:
    """Whether torch has this device, asked in a process of its own: forks of one that has asked cannot use it."""
    process = FORK.Process(target=lambda: sys.exit(int(device.startswith("cuda") and not torch.cuda.is_available())))
    process.start()
    process.join()
    return process.exitcode == 0


def one_part(name: str, path: Path, options: argparse.Namespace, seconds: float) -> None:
    """Run a part in a process forked from this one, which has the imports; what it could not finish is written down.

    This process never touches the device, so each part opens it for itself, and a part that dies takes nothing along.
    """
    record = Record(name, path, time.monotonic() + seconds)
    if seconds < 5:
        record.not_run(name, f"the {TOTAL_SECONDS} s of the whole run were over")
        return
    process = FORK.Process(target=run_part, args=(name, record, options.device, options.quick))
    process.start()
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
        record.not_run(f"the rest of {name}", f"stopped at its limit of {seconds:.0f} s")
    elif process.exitcode != 0:
        record.add(f"the rest of {name}", "failed", note=f"the process ended with {process.exitcode}")


def run_part(name: str, record: Record, device: str, quick: bool) -> None:
    """Inside the part's own process."""
    torch.manual_seed(0)
    with record.step(name):
        importlib.import_module(f"device.parts.{name}").run(record, torch.device(device), quick)


def markdown(rows: list[Row], title: str, seconds: float) -> str:
    """The report as a page: counts first, then a table for each part."""
    counts = {kind: sum(row.outcome == kind for row in rows) for kind in ("passed", "failed", "measured", "not run")}
    lines = [f"# {title}", "", ", ".join(f"{number} {kind}" for kind, number in counts.items()) + f"; {seconds:.0f} s."]
    for part in dict.fromkeys(row.part for row in rows):
        lines += ["", f"## {part}", "", "| what | outcome | value | claim | note |", "|---|---|---|---|---|"]
        for row in rows:
            if row.part == part:
                cells = (row.name, row.outcome, row.value, row.claim, row.note)
                lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """0 where nothing failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, few rounds")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--output", type=Path, default=Path("outputs/device"), help="folder of the two reports")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    lines = options.output / "rows.jsonl"
    lines.unlink(missing_ok=True)
    began = time.monotonic()
    there = sees(options.device)
    for name in options.only:  # once for all: what a part cannot import fails in that part
        with contextlib.suppress(Exception):
            importlib.import_module(f"device.parts.{name}")
    for name in options.only:
        if not there:
            Record(name, lines).not_run(name, "torch sees no CUDA device here")
            continue
        left = TOTAL_SECONDS - (time.monotonic() - began)
        one_part(name, lines, options, min(PARTS[name], left))
        print(f"{name}: done after {time.monotonic() - began:.0f} s", flush=True)
    rows = [Row(**json.loads(line)) for line in lines.read_text(encoding="utf-8").splitlines()]
    seconds = time.monotonic() - began
    title = f"Device report: {options.device}" + (", quick" if options.quick else "")
    (options.output / "report.md").write_text(markdown(rows, title, seconds), encoding="utf-8")
    report = {"device": options.device, "quick": options.quick, "seconds": seconds, "rows": [vars(row) for row in rows]}
    (options.output / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    failed = [row for row in rows if row.outcome == "failed"]
    print(markdown(failed, "Failed", seconds) if failed else f"nothing failed; see {options.output / 'report.md'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
