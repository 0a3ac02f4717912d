"""Where a run is, and how it may fail on its way.

SIGTERM as a request: the step in progress is finished, a checkpoint written, and then the process ends.
"""

import signal
import threading
from dataclasses import dataclass
from types import FrameType
from typing import Any, Self

import torch

from gssf_plug.distributed import gather_detached
from gssf_plug.errors import GSSFError

__all__ = ["EXIT_CODE", "Interruption", "NotFiniteError", "Progress"]

EXIT_CODE = 128 + signal.SIGTERM  # what a shell reports for a process ended by SIGTERM


class Interruption:
    """While entered, SIGTERM is remembered instead of ending the process; a second one ends it at once.

    Only the main thread can listen.
    """

    def __init__(self) -> None:
        self._received = False
        self._before: Any = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def requested(self, device: torch.device) -> bool:
        """Whether any process was asked to end. A collective, so that all end after the same step."""
        return bool(gather_detached(torch.tensor([self._received], device=device)).any())

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        if self._received:  # the step in progress does not end
            signal.signal(signal.SIGTERM, self._before)
            signal.raise_signal(signal.SIGTERM)
        self._received = True


class NotFiniteError(GSSFError, ArithmeticError):
    """A loss or a gradient is NaN or infinite, and the recipe says to stop.

    Args:
        where: what is not finite, and in which step.
    """

    def __init__(self, where: str) -> None:
        super().__init__(
            f"{where}. The weights are those before this step, and the last checkpoint is good. "
            "Lower metric_learning_rate or learning_rate, look at the data, or set on_nan='skip'."
        )


@dataclass
class Progress:
    """Where a run is; saved with every checkpoint.

    Args:
        step: number of optimizer steps done.
        epoch: epoch of the next batch.
        batch: number of the next batch in that epoch.
        best_score: best value of the measure that the recipe names; None before the first evaluation.
        best_step: step of that value.
        evaluations_since_best: number of evaluations since then, or since the start.
        skipped_steps: number of steps that were not taken because loss or gradient were not finite.
        unreadable_rows: number of training rows that the main process could not read.
        loss_sum: sum of the losses since the last line of the log.
        loss_count: number of these losses.
        seconds: time of training and evaluation, over all resumes.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    best_score: float | None = None
    best_step: int | None = None
    evaluations_since_best: int = 0
    skipped_steps: int = 0
    unreadable_rows: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    seconds: float = 0.0

    def next_step(self) -> str:
        """The step to come, counted from 1 as people do."""
        return f"step {self.step + 1} (epoch {self.epoch + 1}, batch {self.batch + 1})"

    def advance(self, batches: int, *, epoch_ended: bool) -> None:
        """One step of `batches` batches is done."""
        self.step += 1
        self.batch += batches
        if epoch_ended:
            self.epoch, self.batch = self.epoch + 1, 0
