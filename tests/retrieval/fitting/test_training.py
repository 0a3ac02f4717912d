"""One candidate trained: as many steps as were asked for, noise of one length, the mean of weights that a look sees."""

import pytest
import torch
from retrieval.fitting.toy_folds import SCHEDULE, candidate, folds_of

from gssf_plug.retrieval.fitting import training
from gssf_plug.retrieval.fitting.candidates import make_candidates
from gssf_plug.retrieval.fitting.training import Look, Run, Schedule


@pytest.mark.parametrize("loss", ["softmax", "hinge"])
def test_a_run_without_looks_ends_where_one_with_looks_stood_at_that_step(loss: str):
    fold = folds_of()[0]
    watched, unwatched = (Run(candidate(loss), fold.batches, look, SCHEDULE, 1.0) for look in (fold.look, None))
    look = next(watched.train(lambda _: None))
    watched.keep()
    assert list(unwatched.train(lambda _: None, look.step)) == []
    matrices = [run.metric(normalize=False).matrix() for run in (watched, unwatched)]
    assert torch.equal(*matrices)
    assert not torch.equal(matrices[0], torch.eye(24))


def test_weights_are_a_mean_that_counts_later_steps_more(monkeypatch: pytest.MonkeyPatch):
    seen: list[torch.Tensor] = []
    run = Run(candidate(), folds_of()[0].batches, None, SCHEDULE)
    step = torch.optim.Adam.step

    def noting(optimizer, *args, **options):
        step(optimizer, *args, **options)
        seen.append(optimizer.param_groups[0]["params"][0].detach().clone())

    monkeypatch.setattr(torch.optim.Adam, "step", noting)
    list(run.train(lambda _: None, 12))
    mean = torch.ones(24)
    for number, weights in enumerate(seen, start=1):
        mean = mean + 9 / (number + 8) * (weights - mean)
    assert torch.allclose(run.metric(normalize=False).matrix().diagonal(), mean, atol=1e-6)
    assert not torch.allclose(seen[-1], mean, atol=1e-4)


@pytest.mark.parametrize(
    ("epochs", "pairs", "steps"), [(None, 256, 1000), (None, 100_000, 20 * 391), (3, 256, 3), (3, 257, 6), (2, 0, 2)]
)
def test_how_many_steps_a_schedule_has(epochs: int | None, pairs: int, steps: int) -> None:
    assert Schedule(256, epochs, 2, 0).steps(pairs) == steps


def test_a_look_is_the_mean_over_its_queries() -> None:
    assert Look(25, 1.0, torch.tensor([10.0, 20.0, 60.0])).mean == 30.0


def test_looks_come_at_growing_distances_and_at_the_end() -> None:
    fold = folds_of()[0]
    run = Run(candidate(), fold.batches, fold.look, SCHEDULE)
    told: list[int] = []
    looks = list(run.train(told.append, 60))
    assert [look.step for look in looks] == [25, 54, 60]
    assert sum(told) == 60
    assert [look.seconds for look in looks] == sorted(look.seconds for look in looks)
    assert torch.equal(run.metric(normalize=True).matrix(), torch.eye(24))  # neutral before anything is kept
    run.keep()
    assert not torch.equal(run.metric(normalize=True).matrix(), torch.eye(24))


@pytest.mark.parametrize("length", [0.0, 1.0])
def test_noise_is_as_long_as_it_says_and_rows_stay_of_length_one_on_average(length: float) -> None:
    noise = training._Noise(length, (4096, 64), 0, torch.device("cpu"))
    rows = torch.nn.functional.normalize(torch.randn(1000, 64), dim=1)
    found = noise.added(rows)
    if not length:
        assert found is rows
        return
    assert found.square().sum(1).mean().item() == pytest.approx(1, abs=0.02)
    added = found * 2**0.5 - rows  # back at the rows' own scale: (row + noise) / √2
    torch.testing.assert_close(added.norm(dim=1), torch.ones(1000), atol=1e-4, rtol=0)
    assert (added * rows).sum(1).abs().mean() < 0.2  # in directions of its own
    again = training._Noise(length, (4096, 64), 0, torch.device("cpu")).added(rows)
    assert torch.equal(again, found)


def test_weights_of_smaller_blocks_move_faster() -> None:
    rates = {}
    for options in ({"terms": ("diagonal",)}, {"block_size": 64}, {"terms": ("dense",)}):
        made = make_candidates([options], "softmax", None, 512)[0]
        (group, *_) = training._groups(made.metric(normalize=False), made.make_loss())
        rates[str(options)] = group["lr"]
    first, middle, last = rates.values()
    assert first == pytest.approx(last * 512**0.5)
    assert middle == pytest.approx(last * 8**0.5)
