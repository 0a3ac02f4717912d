"""What a run tells: lines of its log, numbers for trackers, a progress bar, and the time it took.

The run's log as lines of JSON, one record each, with a "step"; a resumed run takes back what it will do again.
"""

import json
import logging
import math
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch.optim import Optimizer
from tqdm import tqdm

from gssf_plug.errors import CheckpointError
from gssf_plug.files import write_atomically
from gssf_plug.retrieval.training.config import RetrievalConfig
from gssf_plug.retrieval.training.progress import Progress

__all__ = ["Reports", "RunLog"]

logger = logging.getLogger(__name__)


class RunLog:
    """A JSONL file that is appended to.

    Args:
        path: file of the log; its folder must exist when a record is written.
        writes: False for processes that only take part; default True.
    """

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        self.path = path
        self.writes = writes

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record.

        Raises:
            CheckpointError: the disk refuses.
        """
        if self.writes:
            try:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(record) + "\n")
            except OSError as error:
                remedy = "Free some disk space and call train(resume=True); the last checkpoint is untouched."
                raise CheckpointError(self.path, f"could not be written ({error})", remedy) from error

    def records(self) -> list[dict[str, Any]]:
        """All whole records; a line that a crash cut is passed over."""
        if not self.path.exists():
            return []
        found = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return found

    def rewind(self, step: int) -> None:
        """Forget the records after `step`."""
        if self.writes and self.path.exists():
            kept = [json.dumps(record) + "\n" for record in self.records() if record["step"] <= step]
            write_atomically(self.path, lambda path: path.write_text("".join(kept), encoding="utf-8"))


class Reports:
    """Reports of one run; only the main process writes and shows.

    Args:
        folder: folder of the run, whose log is `log.jsonl`.
        accelerator: accelerator whose trackers get the same numbers.
        config: recipe of the run.
    """

    def __init__(self, folder: Path, accelerator: Accelerator, config: RetrievalConfig) -> None:
        self.name, self.accelerator, self.config = folder.name, accelerator, config
        self.log = RunLog(folder / "log.jsonl", writes=accelerator.is_main_process)
        self.shows = config.progress and accelerator.is_main_process
        self._clock = time.perf_counter()
        self._bar: Any = None

    def begin(self, progress: Progress) -> None:
        """Open the trackers, and forget what will be done again."""
        if self.config.trackers:
            plain = {key: value for key, value in self.config.to_json().items() if isinstance(value, int | float | str)}
            self.accelerator.init_trackers("gssf-plug", config=plain)
        self.log.rewind(progress.step)
        self._clock = time.perf_counter()

    @contextmanager
    def bar(self, steps: int, progress: Progress) -> Iterator[Any]:
        """A bar of optimizer steps with the last loss and the best measure; while entered, evaluations are told."""
        with tqdm(total=steps, initial=progress.step, disable=not self.shows, unit="step", desc=self.name) as self._bar:
            yield self._bar
        self._bar = None

    def step(self, loss: float | None, progress: Progress) -> None:
        """One step is done."""
        if self._bar is not None:
            shown = {"loss": f"{loss:.4g}"} if loss is not None else {}
            if progress.best_score is not None:
                shown[f"best {self.config.best}"] = f"{progress.best_score:.4g}"
            self._bar.set_postfix(shown, refresh=False)
            self._bar.update()

    def evaluation(self, measures: Mapping[str, float], progress: Progress) -> None:
        """One line for an evaluation: by `logging` where somebody listens to it, else above the bar."""
        best = self.config.best
        told = f"step {progress.step}: {best} {measures.get(best, math.nan):.4g}"
        if progress.best_score is not None:
            told += f", best {progress.best_score:.4g} at step {progress.best_step}"
        if self.accelerator.is_main_process and logger.isEnabledFor(logging.INFO):
            logger.info("%s: %s", self.name, told)
        elif self._bar is not None and self.shows:
            self._bar.write(told, file=sys.stderr)

    def train(self, progress: Progress, optimizer: Optimizer) -> None:
        """The mean loss since the last such line, the rates, and what went wrong so far."""
        mean = progress.loss_sum / progress.loss_count if progress.loss_count else None
        rates = {f"rate_{group['name']}": group["lr"] for group in optimizer.param_groups}
        counts = {"skipped_steps": progress.skipped_steps, "unreadable_rows": progress.unreadable_rows}
        self.write("train", {"loss": mean, **rates, **counts}, progress)
        progress.loss_sum, progress.loss_count = 0.0, 0

    def write(self, kind: str, values: Mapping[str, Any], progress: Progress) -> None:
        """One line of the log."""
        self.tick(progress)
        where = {"step": progress.step, "epoch": progress.epoch, "kind": kind, "seconds": round(progress.seconds, 2)}
        self.log.write({**where, **values})
        numbers = {f"{kind}/{name}": value for name, value in values.items() if value is not None}
        self.accelerator.log(numbers, progress.step)

    def tick(self, progress: Progress) -> None:
        """Count the time since the last call."""
        now = time.perf_counter()
        progress.seconds += now - self._clock
        self._clock = now

    def finish(self) -> None:
        """Close the trackers."""
        for tracker in self.accelerator.trackers:
            tracker.finish()
