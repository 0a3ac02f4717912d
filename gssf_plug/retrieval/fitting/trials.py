"""A candidate with one length of noise, on every fold at once: when it stops, and what it is worth."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from gssf_plug.retrieval.fitting.batches import Batches
from gssf_plug.retrieval.fitting.candidates import Candidate
from gssf_plug.retrieval.fitting.training import Look, Run, Schedule
from gssf_plug.retrieval.fitting.validation import Ranking

__all__ = ["Fold", "Trial"]

FIRST_LOOKS = 3  # from this look on a trial is dropped that is behind the best one by a standard error
FAR = 5.0  # standard errors that drop it before: starts differ, and some that won were 2.4 behind at the second look


class Fold(NamedTuple):
    """Batches of the training queries, the ranking that training is watched by, and the one that counts."""

    batches: Batches
    look: Ranking
    full: Ranking


class Trial:
    """Runs in step with each other, one a fold; whole at any moment, also where it is interrupted.

    Args:
        candidate: structure and loss that are trained.
        folds: folds of the queries, one run each.
        schedule: length and pieces of each run.
        noise: length of the noise that each run adds to rows of length 1.
    """

    def __init__(self, candidate: Candidate, folds: Sequence[Fold], schedule: Schedule, noise: float) -> None:
        self.candidate, self.schedule, self.noise = candidate, schedule, noise
        self.runs = [Run(candidate, fold.batches, fold.look, schedule, noise) for fold in folds]
        self.looks: list[Look] = []
        self.best: Look | None = None
        self.dropped = False

    @property
    def value(self) -> float:
        """The best mean so far; minus infinity before the first look."""
        return float("-inf") if self.best is None else self.best.mean

    def train(self, advance: Callable[[int], object], rival: "Trial | None") -> None:
        """Train until the looks stop gaining, or are certainly behind those of the best trial so far.

        Args:
            advance: function that is called with the number of steps done since its last call.
            rival: the best trial so far; None where this is the first.
        """
        wait = 0
        for same in zip(*(run.train(advance) for run in self.runs), strict=False):
            values = torch.cat([look.values for look in same])
            look = Look(same[0].step, sum(part.seconds for part in same), values)
            self.looks.append(look)
            if look.mean > self.value:
                self.best, wait = look, 0
                for run in self.runs:
                    run.keep()
            else:
                wait += 1
            self.dropped = rival is not None and self._behind(rival)
            if self.dropped or wait >= self.schedule.patience:
                return

    def _behind(self, rival: "Trial") -> bool:
        """Whether the rival's look at the same step was better, by how many standard errors of that difference."""
        number = len(self.looks) - 1
        if number >= len(rival.looks):
            return False
        differences = (rival.looks[number].values - self.looks[number].values).double()
        errors = 1.0 if number + 1 >= FIRST_LOOKS else FAR
        return bool(differences.mean() > errors * differences.std() / len(differences) ** 0.5)
