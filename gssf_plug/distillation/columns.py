"""Which columns of the data reach a Distiller under a Trainer, and the first rows that it is planned on.

A Trainer drops what the student's forward does not take, so the teacher would silently get none of its own columns and
read the student's in their place. Here the columns follow the data that is read, set by set and batch by batch: another
evaluation set may hold others than the training set.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import datasets
from torch.utils.data import IterableDataset
from transformers import Trainer

from gssf_plug.errors import ArgumentError

__all__ = ["PeekedRows", "TeacherColumns", "take_first_rows", "take_rows"]


@dataclass
class TeacherColumns:
    """A collator that keeps the columns of both models, as the rows at hand have them.

    Args:
        collate: collate function that makes a batch of the columns that are left.
        student: columns that the Trainer underneath keeps.
        teacher: function that picks from some columns those that the teacher needs (`Teacher.columns`).
    """

    collate: Callable[[list[Any]], Any]
    student: frozenset[str]
    teacher: Callable[[Iterable[str]], list[str]]

    def __call__(self, rows: list[Any]) -> Any:
        """The batch of some rows."""
        return self.collate([self._kept(row) for row in rows])

    def _kept(self, row: Any) -> Any:
        if not isinstance(row, Mapping):
            return row
        kept = self.student.union(self.teacher(row))
        return {name: value for name, value in row.items() if name in kept}


class PeekedRows(IterableDataset[Any]):
    """A stream some rows of which were looked at: the first pass over it begins with those, so none is lost.

    A later pass asks the stream anew.

    Args:
        stream: any IterableDataset of torch.
        count: number of rows to look at.
    """

    def __init__(self, stream: IterableDataset[Any], count: int) -> None:
        self.stream = stream
        self._rest: Iterator[Any] | None = iter(stream)
        self.rows = list(islice(self._rest, count))

    def __iter__(self) -> Iterator[Any]:
        # The very iterator that was looked at goes on: a stream that can be read once has no other.
        begun, self._rest = self._rest, None
        return iter(self.stream) if begun is None else chain(self.rows, begun)

    def __getattr__(self, name: str) -> Any:  # set_epoch and whatever else a loader asks the stream for
        if name == "stream":
            raise AttributeError(name)
        return getattr(self.stream, name)


class _CountedRows(PeekedRows):
    """The same over a stream that knows its length; a loader asks for it by `hasattr`."""

    def __len__(self) -> int:
        return len(self.stream)  # type: ignore[arg-type]


def take_first_rows(trainer: Trainer, count: int) -> list[Any]:
    """The first rows of a Trainer's training data, or of its first evaluation set; a stream loses none of them.

    Args:
        trainer: the Trainer; where its data is a stream, one that begins with the same rows takes its place.
        count: number of rows to take.

    Raises:
        ArgumentError: the Trainer has no data; or as in `take_rows`.
    """
    workers = trainer.args.dataloader_num_workers
    if trainer.train_dataset is not None:
        rows, trainer.train_dataset = take_rows(trainer.train_dataset, count, workers)
    elif isinstance(trainer.eval_dataset, dict) and trainer.eval_dataset:
        name = next(iter(trainer.eval_dataset))
        rows, trainer.eval_dataset[name] = take_rows(trainer.eval_dataset[name], count, workers)
    elif trainer.eval_dataset is not None:
        rows, trainer.eval_dataset = take_rows(trainer.eval_dataset, count, workers)
    else:
        rule = "be planned where the Trainer gets no data"
        raise ArgumentError("distiller", rule, "an unplanned one", "Call distiller.plan(batch).")
    return rows


def take_rows(dataset: Any, count: int, workers: int) -> tuple[list[Any], Any]:
    """The first rows of a data set, and what is to be read in its place, beginning with the same rows.

    Args:
        dataset: data set of any kind that a Trainer takes.
        count: number of rows to take; a shorter data set gives fewer.
        workers: number of processes that will read it, besides this one.

    Raises:
        ArgumentError: a stream of torch will be read by several workers, or the data set has no rows: then call
            `Distiller.plan` by hand.
    """
    stream = isinstance(dataset, IterableDataset) and not isinstance(dataset, datasets.IterableDataset)
    if not stream:  # datasets' streams are read anew from their first row
        rows = list(islice(iter(dataset), count))
    elif workers:
        raise ArgumentError(
            "distiller",
            "be planned before a torch IterableDataset is read by workers, whose first rows must not be taken away",
            "an unplanned one",
            "Call distiller.plan(batch) on a batch of your own, or set dataloader_num_workers=0.",
        )
    else:
        dataset = (_CountedRows if hasattr(dataset, "__len__") else PeekedRows)(dataset, count)
        rows = dataset.rows
    if not rows:
        raise ArgumentError("train_dataset", "hold at least one example", "none", "Give data, or plan the distiller.")
    return rows, dataset
