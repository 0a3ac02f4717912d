"""The loop: what it trains, logs, keeps, refuses and survives in one process. Crashes stand in test_crash.py."""

import json
import logging
import os
import signal
import threading

import pytest
import torch
from accelerate import Accelerator
from retrieval import toy
from retrieval.toy import assert_same, checkpoints, weights
from torch import nn

from gssf_plug.errors import ArgumentError
from gssf_plug.losses import Hinge, InfoNCE
from gssf_plug.retrieval import NotFiniteError
from gssf_plug.retrieval.data.images import UnreadableError

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


def log_of(trainer, kind=None):
    records = [json.loads(line) for line in (trainer.folder / "log.jsonl").read_text().splitlines()]
    return [record for record in records if kind in (None, record["kind"])]


def test_it_learns_logs_and_keeps_the_best(tmp_path):
    trainer = toy.trainer(tmp_path / "run", changes={"keep_checkpoints": 2})
    before = trainer.evaluate()["rsum"]
    progress = trainer.train()
    steps = 9 * 3  # 46 rows give 5 batches of 9, two a step
    assert (progress.step, progress.epoch, progress.batch) == (steps, 9, 0)
    assert checkpoints(trainer) == ["step-00000024", "step-00000027"]
    assert [record["step"] for record in log_of(trainer, "train")] == [5, 10, 15, 20, 25, 27]
    evaluations = log_of(trainer, "eval")
    assert [record["step"] for record in evaluations] == [4, 8, 12, 16, 20, 24, 27]
    losses = [record["loss"] for record in log_of(trainer, "train")]
    assert losses[-1] < losses[0]
    best = max(evaluations, key=lambda record: record["rsum"])
    assert (progress.best_score, progress.best_step) == (best["rsum"], best["step"])
    assert best["rsum"] > before + 50
    assert trainer.evaluate()["rsum"] == evaluations[-1]["rsum"]
    trainer.load_best()
    assert trainer.evaluate()["rsum"] == best["rsum"]


def test_metric_and_loss_are_trained(tmp_path):
    loss = Hinge(learned_scale=True)
    trainer = toy.trainer(tmp_path, loss=loss)
    before, scale = weights(trainer), loss.scale.log_scale.item()
    trainer.train()
    assert all(not torch.equal(value, before[name]) for name, value in weights(trainer).items())
    assert loss.scale.log_scale.item() != scale


def test_one_tower_with_labels(tmp_path):
    def measure(embedding, metric):
        assert embedding.one_sided
        assert metric is not None
        return {"rows": float(len(embedding.queries)), "labels": float(embedding.query_ids.sum())}

    data = toy.Labelled()
    trainer = toy.trainer(
        tmp_path, changes={"best": "rows", "batch_size": 8}, model=toy.one_tower(), loss=InfoNCE(), train_data=data,
        eval_data=data, collate=toy.collate_labelled, eval_collate=None, evaluation=measure,
    )  # fmt: skip
    trainer.train()
    assert log_of(trainer, "eval")[0]["rows"] == 24
    assert log_of(trainer, "eval")[0]["labels"] == sum(index % 6 for index in range(24))


def test_an_own_batch_sampler_says_what_a_batch_is(tmp_path):
    class Pairs:
        epoch = -1

        def set_epoch(self, epoch):
            self.epoch = epoch

        def __len__(self):
            return 3

        def __iter__(self):
            return iter([[self.epoch, 10 + self.epoch, row] for row in (20, 21, 22)])

    seen = []

    def collate(rows):
        seen.append([int(row["id"]) for row in rows])
        return toy.collate(rows)

    toy.trainer(tmp_path, changes={"epochs": 2}, batches=Pairs(), collate=collate, eval_data=None).train()
    assert seen == [[0, 10, 20], [0, 10, 21], [0, 10, 22], [1, 11, 20], [1, 11, 21], [1, 11, 22]]


def test_accumulation_is_the_mean_of_the_batches_losses(tmp_path):
    trainer = toy.trainer(
        tmp_path, changes={"accumulation": 3, "max_gradient_norm": None}, model=toy.model(dropout=0.0)
    )
    groups = trainer._groups_of_epoch()
    group = next(groups)
    assert len(group) == 3
    assert len(next(groups)) == 2  # what is left of the epoch
    trainer.objective.eval()
    mean = torch.stack([trainer.objective(read.batch) for read in group]).mean()
    expected = torch.autograd.grad(mean, list(trainer.objective.parameters()))
    trainer.optimizer.step = lambda: None
    trainer._optimize(group)
    for parameter, gradient in zip(trainer.objective.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_clipping(tmp_path):
    trainer = toy.trainer(tmp_path, changes={"max_gradient_norm": 1e-3})
    trainer.optimizer.step = lambda: None
    trainer._optimize(next(trainer._groups_of_epoch()))
    norm = torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in trainer.objective.parameters()]))
    assert norm.item() == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("precision", ["bf16"])
def test_mixed_precision_encodes_in_half_and_scores_in_float32(tmp_path, precision):
    seen = {}
    model = toy.model()
    model.text_tower.register_forward_hook(lambda module, inputs, output: seen.update(features=output.dtype))
    score = model.score
    model.score = lambda queries, gallery: seen.update(scores=(s := score(queries, gallery)).dtype) or s
    trainer = toy.trainer(tmp_path, changes={"mixed_precision": precision}, model=model)
    trainer.train()
    assert seen == {"features": torch.bfloat16, "scores": torch.float32}
    assert log_of(trainer, "train")[-1]["loss"] < log_of(trainer, "train")[0]["loss"]


def test_trackers_get_the_numbers(tmp_path):
    trainer = toy.trainer(tmp_path / "run", changes={"trackers": ("tensorboard",)})
    trainer.train()
    assert list((tmp_path / "run").rglob("events.out.tfevents*"))


def test_workers_read_the_same(tmp_path):
    one, two = toy.trainer(tmp_path / "one"), toy.trainer(tmp_path / "two", changes={"num_workers": 2, "epochs": 9})
    one.train()
    two.train()
    assert_same(weights(one), weights(two))


def test_a_finished_run_resumes_to_its_end(tmp_path):
    one = toy.trainer(tmp_path)
    done = one.train()
    two = toy.trainer(tmp_path)
    assert two.train(resume=True) == done
    assert_same(weights(one), weights(two))


def test_it_does_not_start_over_another_run(tmp_path):
    toy.trainer(tmp_path).train()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ArgumentError, match=r"`resume` must be True, since '.*step-00000027' exists, but got False"):
        toy.trainer(tmp_path).train()
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("changes", "parts", "name"),
    [
        ({"learning_rate": 0.5}, {}, "learning_rate"),
        ({"seed": 9}, {}, "seed"),
        ({}, {"train_data": toy.rows(45)}, "rows"),
    ],
)
def test_another_recipe_is_not_resumed(tmp_path, changes, parts, name):
    toy.trainer(tmp_path).train()
    trainer = toy.trainer(tmp_path, changes=changes, **parts)
    before = weights(trainer)
    with pytest.raises(ArgumentError, match=f"`{name}`.* must be what the run in '.*' began with"):
        trainer.train(resume=True)
    assert_same(weights(trainer), before)


class Poison(nn.Module):
    """A loss that is NaN, or has a NaN gradient, in some calls."""

    def __init__(self, calls, where):
        super().__init__()
        self.calls, self.where, self.call = calls, where, 0

    def forward(self, scores, relevance, *, forbidden=None):
        self.call += 1
        good = InfoNCE(learned_scale=False)(scores, relevance)
        if self.call not in self.calls:
            return good
        return good * float("nan") if self.where == "loss" else good + (scores - scores).abs().sqrt().sum() * 0


@pytest.mark.parametrize(
    ("where", "text"), [("loss", "the loss is nan"), ("gradient", "the norm of the gradient is nan")]
)
def test_nan_stops_naming_the_step(tmp_path, where, text):
    trainer = toy.trainer(tmp_path, loss=Poison({8}, where))  # batches: 2, 2, 1 | 2, 2, 1: the eighth is in step 5
    with pytest.raises(NotFiniteError, match=rf"{text} in step 5 \(epoch 2, batch 3\)\. The weights are those before"):
        trainer.train()
    assert checkpoints(trainer) == ["step-00000003"]
    assert all(value.isfinite().all() for value in weights(trainer).values())


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_nan_is_skipped_and_counted(tmp_path, where, caplog):
    trainer = toy.trainer(tmp_path, changes={"on_nan": "skip"}, loss=Poison({8, 9}, where))
    with caplog.at_level(logging.WARNING):
        progress = trainer.train()
    assert "in step 5 (epoch 2, batch 3); the step is skipped" in caplog.text
    assert progress.skipped_steps == log_of(trainer, "train")[-1]["skipped_steps"] == (1 if where == "gradient" else 2)
    assert all(value.isfinite().all() for value in weights(trainer).values())
    assert all(torch.tensor(record["loss"]).isfinite() for record in log_of(trainer, "train"))


class Damaged(list):
    def __getitem__(self, index):
        if index in (3, 17):
            raise OSError("cannot identify image file 'photo.png'")
        return super().__getitem__(index)


def test_unreadable_rows_raise_or_are_counted(tmp_path, caplog):
    with pytest.raises(UnreadableError, match=r"row (3|17) of the data cannot be read: .*photo\.png"):
        toy.trainer(tmp_path / "raise", train_data=Damaged(toy.rows())).train()
    changes = {"on_unreadable": "skip", "epochs": 2}
    trainer = toy.trainer(tmp_path / "skip", changes=changes, train_data=Damaged(toy.rows()))
    with caplog.at_level(logging.WARNING):
        progress = trainer.train()
    assert 2 <= progress.unreadable_rows == log_of(trainer, "train")[-1]["unreadable_rows"] <= 4
    assert "skipped: row 3 of the data cannot be read" in caplog.text


def test_sigterm_in_the_middle_writes_a_checkpoint_and_the_old_handler_is_back(tmp_path):
    handler = signal.getsignal(signal.SIGTERM)
    calls = []

    def collate(rows):
        calls.append(1)
        if len(calls) == 9:  # the first batch of the fifth step
            os.kill(os.getpid(), signal.SIGTERM)
        return toy.augment(rows)

    trainer = toy.trainer(tmp_path / "ended", collate=collate)
    left = []
    trainer.accelerator.end_training = lambda: left.append(checkpoints(trainer)[-1])
    with pytest.raises(SystemExit) as ended:
        trainer.train()
    assert ended.value.code == 143
    assert left == ["step-00000005"]  # trackers and process group, once the checkpoint is there
    assert checkpoints(trainer)[-1] == "step-00000005"
    assert signal.getsignal(signal.SIGTERM) is handler
    resumed, unbroken = toy.trainer(tmp_path / "ended"), toy.trainer(tmp_path / "unbroken")
    resumed.train(resume=True)
    unbroken.train()
    assert_same(weights(resumed), weights(unbroken))


def test_it_trains_in_a_thread_where_no_signal_can_be_heard(tmp_path):
    trainer = toy.trainer(tmp_path, changes={"epochs": 1})
    thread = threading.Thread(target=trainer.train)
    thread.start()
    thread.join()
    assert trainer.progress.step == 3


@pytest.mark.bad_input
def test_parts_that_do_not_fit_are_named(tmp_path):
    with pytest.raises(ArgumentError, match=r"`batches` must have a method set_epoch\(epoch\).* but got list"):
        toy.trainer(tmp_path, batches=[[0, 1]])
    with pytest.raises(ArgumentError, match=r"`best` must be a measure of the evaluation, .*'rsum'.* but got mAP"):
        toy.trainer(tmp_path / "best", changes={"best": "mAP"}).train()
    with pytest.raises(ArgumentError, match="`data` must be given where the trainer has no eval_data"):
        toy.trainer(tmp_path, eval_data=None).evaluate()
    with pytest.raises(ArgumentError, match="`mixed_precision` must agree with the accelerator's, 'no'"):
        toy.trainer(tmp_path, changes={"mixed_precision": "bf16"}, accelerator=Accelerator())


@pytest.mark.bad_input
def test_processes_that_do_not_meet_are_named(tmp_path, monkeypatch):
    accelerator = Accelerator()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ArgumentError, match="`accelerator` must see the 2 processes that were launched"):
        toy.trainer(tmp_path, accelerator=accelerator)
