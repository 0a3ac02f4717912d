"""Where a run is, and how it may fail on its way."""

from dataclasses import dataclass

from gssf_plug.errors import GSSFError

__all__ = ["NotFiniteError", "Progress"]


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
        step: optimizer steps done.
        epoch: of the next batch.
        batch: the next batch of that epoch.
        best_score: best value of the measure that the recipe names, None before the first evaluation.
        best_step: when that was.
        skipped_steps: steps not taken because loss or gradient were not finite.
        unreadable_rows: training rows that could not be read, by the main process.
        loss_sum: sum of the losses since the last line of the log.
        loss_count: how many.
        seconds: training and evaluation time, over all resumes.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    best_score: float | None = None
    best_step: int | None = None
    skipped_steps: int = 0
    unreadable_rows: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    seconds: float = 0.0

    def next_step(self) -> str:
        """The step to come, counted from 1 as people do."""
        return f"step {self.step + 1} (epoch {self.epoch + 1}, batch {self.batch + 1})"

    def advance(self, batches: int, batches_of_epoch: int) -> None:
        """One step of `batches` batches is done."""
        self.step += 1
        self.batch += batches
        if self.batch == batches_of_epoch:
            self.epoch, self.batch = self.epoch + 1, 0
