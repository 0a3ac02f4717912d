"""When a candidate stops: patience, a rival that is clearly ahead, and what is kept of it."""

import pytest
import torch
from retrieval.fitting.toy_folds import SCHEDULE, candidate, folds_of

from gssf_plug.retrieval.fitting.training import Look, Run
from gssf_plug.retrieval.fitting.trials import Trial


class Scripted(Run):
    """A run whose looks are given; its kept weights are the number of the look."""

    def __init__(self, values: list[float], spreads: list[float] | None = None) -> None:
        self.values, self.spreads, self.kept = values, spreads or [1.0] * len(values), -1

    def train(self, advance, steps=None):
        for number, (value, spread) in enumerate(zip(self.values, self.spreads, strict=True)):
            self.number = number
            yield Look(25 * (number + 1), 0.0, torch.tensor([value - spread, value, value + spread]))

    def keep(self) -> None:
        self.kept = self.number


def scripted(*runs: list[float], spreads: list[float] | None = None) -> Trial:
    trial = Trial(candidate(), [], SCHEDULE, 0.0)
    trial.runs = [Scripted(values, spreads) for values in runs]
    return trial


def test_patience_counts_looks_without_a_gain_and_the_best_is_kept():
    trial = scripted([50.0, 51.0, 50.5, 50.9, 60.0])
    trial.train(lambda _: None, None)
    assert [look.mean for look in trial.looks] == [50.0, 51.0, 50.5, pytest.approx(50.9)]
    assert trial.value == 51.0
    assert trial.runs[0].kept == 1
    assert not trial.dropped


def test_folds_are_looked_at_together():
    trial = scripted([50.0, 60.0, 50.0, 50.0], [50.0, 50.0, 62.0, 62.0])
    trial.train(lambda _: None, None)
    assert [look.mean for look in trial.looks] == [50.0, 55.0, 56.0, 56.0]
    assert len(trial.best.values) == 6
    assert [run.kept for run in trial.runs] == [2, 2]


@pytest.mark.parametrize(("third", "dropped"), [(52.0, True), (54.9, True), (55.1, False), (58.0, False)])
def test_dropped_at_the_third_look_where_the_rival_was_ahead_beyond_the_standard_error(third: float, dropped: bool):
    rival = scripted([40.0, 50.0, 55.0, 56.0])
    rival.train(lambda _: None, None)
    # from the third look on differences are alike for all queries: their error is 0; before it is 9 / √3
    trial = scripted([30.0, 35.0, third, 59.0], spreads=[10.0, 10.0, 1.0, 1.0])
    trial.train(lambda _: None, rival)
    assert trial.dropped == dropped
    assert len(trial.looks) == (3 if dropped else 4)


@pytest.mark.parametrize(("spread", "looks"), [(1.0, 1), (4.4, 1), (4.6, 2), (10.0, 3)])
def test_dropped_before_where_the_rival_was_ahead_by_five_standard_errors(spread: float, looks: int):
    rival = scripted([40.0, 56.0, 55.0, 56.0])
    rival.train(lambda _: None, None)
    # differences 10 and 16, of error (spread - 1) / √3
    trial = scripted([30.0, 40.0, 50.0, 59.0], spreads=[spread, spread, 1.0, 1.0])
    trial.train(lambda _: None, rival)
    assert trial.dropped
    assert len(trial.looks) == looks


def test_a_difference_within_its_standard_error_drops_nothing():
    rival = scripted([40.0, 50.0, 55.0])
    rival.train(lambda _: None, None)
    rival.looks[2] = rival.looks[2]._replace(values=torch.tensor([90.0, 40.0, 40.0]))  # mean 56.7
    trial = scripted([30.0, 35.0, 55.0], spreads=[10.0, 10.0, 1.0])
    trial.train(lambda _: None, rival)
    assert not trial.dropped


def test_a_real_trial_keeps_the_weights_of_its_best_look():
    fold = folds_of()[0]
    trial = Trial(candidate(), [fold], SCHEDULE, 0.0)
    trial.train(lambda _: None, None)
    assert fold.look.values(trial.runs[0].metric(normalize=False)).mean().item() == pytest.approx(trial.value)
