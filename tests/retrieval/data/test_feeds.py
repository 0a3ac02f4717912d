"""Streams as training data: torch's, datasets', generators; resumed, shared by processes, refused by name."""

import pytest
import torch
from datasets import Dataset, IterableDataset
from retrieval import toy
from torch.utils import data

from gssf_plug.errors import ArgumentError, DataError
from gssf_plug.retrieval.data.feeds import StreamFeed, is_stream

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


class TorchStream(data.IterableDataset):
    def __init__(self):
        self.epochs = []

    def set_epoch(self, epoch):
        self.epochs.append(epoch)

    def __iter__(self):
        return iter(toy.rows())


def plain_rows():
    for row in toy.rows():
        yield {name: value.tolist() for name, value in row.items()}


def tensors(rows):
    return [{name: torch.tensor(value) for name, value in row.items()} for row in rows]


def streams():
    return {
        "torch": (TorchStream(), toy.augment),
        "generator": (IterableDataset.from_generator(plain_rows), lambda rows: toy.augment(tensors(rows))),
        "mapped": (
            Dataset.from_list(list(plain_rows())).to_iterable_dataset(num_shards=2).shuffle(seed=3, buffer_size=10)
            .map(lambda row: {"image": row["image"]}),
            lambda rows: toy.augment(tensors(rows)),
        ),
    }  # fmt: skip


def run(folder, kind, **changes):
    rows, collate = streams()[kind]
    return toy.trainer(
        folder, train_data=rows, collate=collate, changes={"max_steps": 12, "checkpoint_every": 4, **changes}
    )


@pytest.mark.parametrize("kind", ["torch", "generator", "mapped"])
def test_a_stream_is_trained_on_and_resumed_to_the_bit(tmp_path, kind):
    whole = run(tmp_path / "whole", kind)
    progress = whole.train()
    assert (progress.step, progress.epoch) == (12, 4)
    halved = run(tmp_path / "halved", kind)
    calls, collate = [], halved.feed.collate

    def dies(rows):
        calls.append(1)
        if len(calls) == 10:
            raise InterruptedError
        return collate(rows)

    halved.feed.collate = dies
    with pytest.raises(InterruptedError):
        halved.train()
    resumed = run(tmp_path / "halved", kind)
    assert resumed.train(resume=True).step == 12
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_a_stream_has_the_batches_of_the_same_rows_in_order():
    batches = list(StreamFeed(TorchStream(), toy.collate, 9).epoch(0))
    assert [read.batch["image_ids"].tolist() for read in batches] == [list(range(s, s + 9)) for s in range(0, 45, 9)]
    assert [read.last for read in batches] == [False] * 4 + [True]
    parts = [list(StreamFeed(TorchStream(), toy.collate, 9, process=rank, processes=2).epoch(0)) for rank in (0, 1)]
    for whole, *own in zip(batches, *parts, strict=True):
        assert torch.equal(torch.cat([read.batch["image_ids"] for read in own]), whole.batch["image_ids"])
    later = list(StreamFeed(TorchStream(), toy.collate, 9).epoch(0, start=3))
    assert [read.batch["image_ids"].tolist() for read in later] == [
        read.batch["image_ids"].tolist() for read in batches[3:]
    ]


def test_no_row_is_eaten_before_training(tmp_path):
    read = []

    def rows():
        for number, row in enumerate(toy.rows()):
            read.append(number)
            yield row

    trainer = toy.trainer(tmp_path, train_data=rows(), changes={"max_steps": 2})
    trainer._begin(False)
    assert read == []
    next(trainer._groups_of_epoch())
    assert read[:9] == list(range(9))


def test_a_stream_that_can_be_read_once_is_named_when_it_is_empty(tmp_path):
    trainer = toy.trainer(tmp_path, train_data=(row for row in toy.rows()), changes={"max_steps": 9})
    with pytest.raises(ArgumentError, match="`train_data` must give at least the 9 rows .* but got 0 in pass 1"):
        trainer.train()
    assert trainer.progress.step == 3


def test_an_error_of_a_stream_names_its_row(tmp_path):
    def rows():
        yield from toy.rows()[:12]
        raise KeyError("photo")

    with pytest.raises(DataError, match="'row 12 of the stream' raised KeyError: 'photo'"):
        toy.trainer(tmp_path, train_data=rows(), changes={"max_steps": 9}).train()


def test_a_shorter_stream_is_named_when_a_run_is_resumed():
    with pytest.raises(DataError, match="ends after 5 batches in pass 0, where the run is at batch 7"):
        list(StreamFeed(TorchStream(), toy.collate, 9).epoch(0, start=7))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("changes", "parts", "told"),
    [
        ({}, {}, "`max_steps` must be given where train_data is a stream.*but got a TorchStream. Set Retrieval"),
        ({"max_steps": 4, "num_workers": 2}, {}, "`num_workers` must be 0 where train_data is a stream"),
        ({"max_steps": 4, "on_unreadable": "skip"}, {}, "`on_unreadable` must be 'raise' where train_data is a stream"),
        ({"max_steps": 4}, {"batches": [[1]]}, "`batches` must be None where train_data is a stream"),
        (
            {"max_steps": 4},
            {"eval_data": TorchStream()},
            "`eval_data` must be a data set with a length and rows by num",
        ),
    ],
)
def test_what_a_stream_cannot_have_is_refused_in_a_sentence(tmp_path, changes, parts, told):
    with pytest.raises(ArgumentError, match=told):
        toy.trainer(tmp_path, train_data=TorchStream(), changes=changes, **parts)


def test_what_is_a_stream():
    assert all(is_stream(rows) for rows in (TorchStream(), IterableDataset.from_generator(plain_rows), iter([])))
    assert not any(is_stream(rows) for rows in ([], Dataset.from_list([{"a": 1}]), toy.Labelled()))
