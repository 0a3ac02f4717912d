"""What made a run hang, overrun, keep a wrong best or lose its place: each is a named error now, or is right."""

import json
import logging
import math
import os
import signal

import numpy as np
import pytest
import torch
from retrieval import toy

from gssf_plug.errors import ArgumentError, DataError
from gssf_plug.losses import Hinge
from gssf_plug.retrieval import RandomBatches

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


class Uneven(RandomBatches):
    """A sampler whose length is not the number of its batches."""

    def __init__(self, gives):
        super().__init__(46, 9)
        self.gives = gives

    def __iter__(self):
        batches = list(super().__iter__())
        return (batches[number % len(batches)] for number in range(self.gives))


@pytest.mark.parametrize(("gives", "told"), [(3, "3"), (0, "0"), (7, "more"), (10**12, "more")])
def test_a_sampler_with_another_number_of_batches_than_its_length_is_named(tmp_path, gives, told):
    trainer = toy.trainer(tmp_path, batches=Uneven(gives))
    with pytest.raises(ArgumentError, match=f"`batches` must give as many batches as its length, 5, but got {told} in"):
        trainer.train()
    assert trainer.progress.step == 0


class Raises(list):
    def __init__(self, rows, error):
        super().__init__(rows)
        self.error = error

    def __getitem__(self, index):
        if index == 7:
            raise self.error
        return super().__getitem__(index)


@pytest.mark.parametrize("error", [StopIteration(), KeyError("photo"), ValueError("two heads"), ZeroDivisionError()])
@pytest.mark.parametrize("workers", [0, 1])
def test_whatever_a_data_set_raises_names_its_row(tmp_path, error, workers):
    changes = {"epochs": 4, "num_workers": workers}
    trainer = toy.trainer(tmp_path, train_data=Raises(toy.rows(), error), changes=changes)
    with pytest.raises(DataError, match=f"'row 7 of the data' raised {type(error).__name__}"):
        trainer.train()


def test_a_collate_function_that_raises_stop_iteration_is_named(tmp_path):
    def collate(rows):
        return next(iter([]))

    with pytest.raises(DataError, match="'batch 0 of the data' raised StopIteration in collate"):
        toy.trainer(tmp_path, collate=collate).train()


def test_a_second_sigterm_ends_a_step_that_does_not_end(tmp_path):
    ended, before = [], signal.signal(signal.SIGTERM, lambda *_: ended.append(True))

    def collate(rows):
        os.kill(os.getpid(), signal.SIGTERM)
        if not ended:
            os.kill(os.getpid(), signal.SIGTERM)
        return toy.augment(rows)

    try:
        toy.trainer(tmp_path, collate=collate, changes={"epochs": 1}).train()
    except SystemExit:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended


def test_every_difference_of_a_resumed_run_is_named_with_both_values(tmp_path):
    toy.trainer(tmp_path, changes={"epochs": 1}).train()
    model = toy.model(dropout=0.4)
    model.image_tower.encoder[1] = torch.nn.ReLU()
    rows = toy.rows(seed=8)
    with pytest.raises(ArgumentError) as told:
        toy.trainer(
            tmp_path, changes={"epochs": 1, "seed": 4}, loss=Hinge(margin=0.5, warmup_steps=7), model=model,
            train_data=rows,
        ).train(resume=True)  # fmt: skip
    text = str(told.value)
    for part in (
        "seed=4 (began with 0)",
        "loss.margin=0.5 (began with 0.2)",
        "model.image_tower.encoder.2.p=0.4 (began with 0.2)",
        "model.image_tower.encoder.1.class='torch.nn.modules.activation.ReLU' (began with 'torch.nn.modules.activa",
        "data.row 0=",
        "resume='anyway'",
    ):
        assert part in text, (part, text)


def test_another_constraint_is_named(tmp_path):
    from gssf_plug import GSSFMetric

    toy.trainer(tmp_path, changes={"epochs": 1}).train()
    model = toy.model()
    model.metric = GSSFMetric(8, block_size=4, constraint="symmetric")
    with pytest.raises(ArgumentError, match="constraint='symmetric' \\(began with None\\)"):
        toy.trainer(tmp_path, changes={"epochs": 1}, model=model).train(resume=True)


def test_a_run_that_is_meant_to_change_goes_on_with_a_warning(tmp_path, caplog):
    toy.trainer(tmp_path, changes={"epochs": 1}).train()
    with caplog.at_level(logging.WARNING):
        progress = toy.trainer(tmp_path, changes={"epochs": 2, "learning_rate": 1e-3}).train(resume="anyway")
    assert "learning_rate=0.001 (began with 0.01)" in caplog.text
    assert "epochs=2 (began with 1)" in caplog.text
    assert progress.step == 6


def test_fewer_batches_than_the_place_of_a_resumed_run_begin_the_next_epoch(tmp_path):
    toy.trainer(tmp_path, changes={"checkpoint_every": 2, "accumulation": 1, "max_steps": 4}).train()
    changes = {"checkpoint_every": 2, "accumulation": 1, "max_steps": 6}
    progress = toy.trainer(tmp_path, changes=changes, train_data=toy.rows(20)).train(resume="anyway")
    assert (progress.step, progress.epoch, progress.batch) == (6, 2, 0)


@pytest.mark.bad_input
def test_resume_is_one_of_three(tmp_path):
    with pytest.raises(ArgumentError, match="`resume` must be True, False or 'anyway', but got 'yes'"):
        toy.trainer(tmp_path).train(resume="yes")


def test_what_is_no_number_is_never_the_best(tmp_path, caplog):
    values = iter([20.0, math.nan, 5.0, 4.0, math.inf, 21.0, 3.0])
    trainer = toy.trainer(tmp_path, evaluation=lambda embedding, metric: {"rsum": next(values)})
    with caplog.at_level(logging.WARNING):
        progress = trainer.train()
    assert (progress.best_score, progress.best_step) == (21.0, 24)
    assert "the evaluation after step 8 is not taken as best: its measure is nan" in caplog.text


def test_a_collapsed_encoder_is_never_the_best(tmp_path, caplog):
    values = iter([(600.0, 100.0), (310.0, 0.0), (590.0, 1.5), (300.0, 0.0), (1.0, 0.0), (2.0, 0.0), (3.0, 0.0)])
    trainer = toy.trainer(
        tmp_path, evaluation=lambda embedding, metric: dict(zip(("rsum", "i2t_tied"), next(values), strict=True))
    )
    progress = trainer.train()
    assert (progress.best_score, progress.best_step) == (310.0, 8)
    assert "'i2t_tied' is 100.0 %, and above 1.0 % ranks say nothing" in caplog.text


@pytest.mark.parametrize("value", [torch.tensor(3.0), np.float32(3.0), torch.tensor([3.0])])
def test_a_tensor_of_one_number_is_a_measure(tmp_path, value):
    trainer = toy.trainer(tmp_path, changes={"epochs": 1}, evaluation=lambda embedding, metric: {"rsum": value})
    assert trainer.train().best_score == 3.0
    assert json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])["rsum"] == 3.0


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("given", "told"),
    [
        (torch.zeros(3), "give a mapping from names to numbers, but got Tensor"),
        ({"rsum": torch.zeros(3)}, r"give a number as 'rsum', but got Tensor of shape \(3,\)"),
        ({"rsum": None}, "give a number as 'rsum', but got None"),
    ],
)
def test_an_evaluation_that_gives_no_numbers_is_named(tmp_path, given, told):
    with pytest.raises(ArgumentError, match=f"`evaluation` must {told}"):
        toy.trainer(tmp_path, evaluation=lambda embedding, metric: given).evaluate()


def test_patience_ends_a_run_and_stays_at_its_end(tmp_path):
    def trainer(patience):
        values = iter([5.0, 7.0, 6.0, 6.0, 6.0, 9.0, 9.0])
        changes = {"patience": patience}
        return toy.trainer(tmp_path, changes=changes, evaluation=lambda embedding, metric: {"rsum": next(values)})

    progress = trainer(2).train()
    assert (progress.step, progress.best_step, progress.evaluations_since_best) == (16, 8, 2)
    assert max(path.name for path in (tmp_path / "checkpoints").iterdir()) == "step-00000016"
    assert trainer(2).train(resume=True) == progress
    assert trainer(None).train(resume=True).step == 27


def test_max_steps_counts_over_epochs(tmp_path):
    trainer = toy.trainer(tmp_path, changes={"max_steps": 7, "epochs": 1})
    progress = trainer.train()
    assert (progress.step, progress.epoch, progress.batch) == (7, 2, 2)


def test_a_run_can_be_watched(tmp_path, capfd, caplog):
    changes = {"epochs": 2, "progress": True, "plot": True}
    with caplog.at_level(logging.WARNING):
        trainer = toy.trainer(tmp_path, changes=changes)
        trainer.train()
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "loss=" in shown.err
    assert "best rsum=" in shown.err
    assert shown.err.count("step 4: rsum ") == shown.err.count("step 6: rsum ") == 1
    assert (tmp_path / "training.png").read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob(".*.tmp"))
    with caplog.at_level(logging.INFO):
        toy.trainer(tmp_path / "heard", changes={"epochs": 2, "progress": True}).train()
    lines = [record.message for record in caplog.records if "heard: step" in record.message]
    assert len(lines) == 2
    assert "step 4: rsum" not in capfd.readouterr().err.split("heard")[0]
