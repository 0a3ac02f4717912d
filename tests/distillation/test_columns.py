"""Streams under a DistillationTrainer: every row is trained on, none is lost to the plan, and a resumed run goes on."""

import datasets
import pytest
import torch
from distillation.models import text
from distillation.test_trainer import PAIR, arguments, dataset, quiet_bert
from torch.utils.data import IterableDataset

from gssf_plug.distillation import DistillationTrainer, Distiller
from gssf_plug.distillation.columns import PeekedRows, take_rows
from gssf_plug.errors import ArgumentError

COUNT = 24


def rows():
    batch = text(COUNT)
    batch["input_ids"][:, 0] = torch.arange(COUNT)  # the row's number is its first token
    return [{name: value[row] for name, value in batch.items()} for row in range(COUNT)]


class Anew(IterableDataset):
    """Begins again with every pass."""

    def __iter__(self):
        return iter(rows())


class Once(IterableDataset):
    """Over a source that can be read once, as a queue or a socket."""

    def __init__(self):
        self.source = iter(rows())

    def __iter__(self):
        yield from self.source


class Counted(Anew):
    def __len__(self):
        return COUNT


def lists():
    yield from ({name: value.tolist() for name, value in row.items()} for row in rows())


STREAMS = {
    "generator": lambda: datasets.IterableDataset.from_generator(lists),
    "mapped": lambda: datasets.IterableDataset.from_generator(lists).map(lambda row: {**row, "note": 1}),
    "streamed": lambda: datasets.Dataset.from_list(list(lists())).to_iterable_dataset(),
    "anew": Anew,
    "once": Once,
    "counted": Counted,
}


def stream_trainer(folder, kind, *, planned=False, **options):
    student, seen = quiet_bert(), []
    distiller = Distiller(student, quiet_bert(24, 4, seed=2), PAIR, ["gssf", "mse"])
    if planned:
        distiller.plan(text())
    args = arguments(folder, max_steps=COUNT // 4, **options)
    trainer = DistillationTrainer(model=student, args=args, train_dataset=STREAMS[kind](), distiller=distiller)
    student.register_forward_pre_hook(
        lambda _, __, kwargs: seen.extend(kwargs["input_ids"][:, 0].tolist()), with_kwargs=True
    )
    return trainer, seen


@pytest.mark.parametrize("planned", [False, True])
@pytest.mark.parametrize("kind", sorted(STREAMS))
def test_every_row_of_a_stream_is_trained_on(tmp_path, kind, planned):
    trainer, seen = stream_trainer(tmp_path, kind, planned=planned)
    trainer.train()
    assert seen == list(range(COUNT))


@pytest.mark.parametrize("kind", ["mapped", "anew"])
def test_a_resumed_run_over_a_stream(tmp_path, kind):
    whole, _ = stream_trainer(tmp_path / "a", kind, save_strategy="steps", save_steps=2)
    whole.train()
    resumed, seen = stream_trainer(tmp_path / "b", kind)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a/checkpoint-2"))
    assert seen == list(range(8, COUNT))
    for name, value in whole.distiller.state_dict().items():
        assert torch.equal(resumed.distiller.state_dict()[name], value), name


def test_the_teachers_columns_of_a_stream(tmp_path):
    """They are kept, and others are dropped, without names known beforehand."""
    student, teacher, seen = quiet_bert(), quiet_bert(24, 4, seed=2), []
    stream = datasets.IterableDataset.from_generator(
        lambda: ({**row, "teacher_input_ids": row["input_ids"][::-1], "note": "x"} for row in lists())
    )
    distiller = Distiller(student, teacher, PAIR, "mse")
    teacher.register_forward_pre_hook(lambda _, __, kwargs: seen.append(kwargs["input_ids"][:, -1]), with_kwargs=True)
    trainer = DistillationTrainer(
        model=student, args=arguments(tmp_path), train_dataset=stream, eval_dataset=stream, distiller=distiller
    )
    trainer.train()
    assert trainer.evaluate()["eval_loss"] > 0
    assert torch.cat(seen[1:])[:16].tolist() == list(range(16))


def test_workers_and_an_unplanned_stream_of_torch_are_refused(tmp_path):
    with pytest.raises(
        ArgumentError, match=r"`distiller` must be planned before a torch IterableDataset is read by work"
    ):
        stream_trainer(tmp_path, "once", dataloader_num_workers=2)


def test_named_eval_sets_without_training_data_plan_the_distiller(tmp_path):
    distiller = Distiller(quiet_bert(), quiet_bert(24, 4, seed=2), PAIR, "mse")
    trainer = DistillationTrainer(
        model=distiller.student,
        args=arguments(tmp_path),
        eval_dataset={"a": dataset(8), "b": Anew()},
        distiller=distiller,
    )
    measured = trainer.evaluate()
    assert {"eval_a_loss", "eval_b_loss"} <= measured.keys()
    with pytest.raises(ArgumentError, match="`train_dataset` must hold at least one example"):
        DistillationTrainer(
            model=distiller.student,
            args=arguments(tmp_path),
            train_dataset=[],
            distiller=Distiller(distiller.student, quiet_bert(24, 4, seed=2), PAIR, "mse"),
        )


def test_a_looked_at_stream_keeps_its_length_and_its_methods():
    class Epochs(Counted):
        def set_epoch(self, epoch):
            self.epoch = epoch

    first, wrapped = take_rows(Epochs(), 3, 0)
    assert isinstance(wrapped, PeekedRows)
    assert len(first) == 3
    assert len(wrapped) == COUNT
    wrapped.set_epoch(2)
    assert wrapped.stream.epoch == 2
    for _ in range(2):
        assert [int(row["input_ids"][0]) for row in wrapped] == list(range(COUNT))
    assert not hasattr(take_rows(Anew(), 3, 0)[1], "__len__")
