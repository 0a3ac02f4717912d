"""Which rows form a batch, and how a process reads its part of it.

A batch is planned as a list of row numbers for all processes together; each process reads its contiguous part, so that
the parts in the order of rank are the batch of a single process. The plan depends on seed and epoch alone. Randomness
inside reading (augmentation in the data set or the collate function: torch's, NumPy's or Python's global generators)
is seeded by seed, epoch, batch and rank: it does not depend on the number of workers, nor on where a run was resumed,
and the generators of the training process are left as they were.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from gssf_plug.errors import ArgumentError
from gssf_plug.retrieval.data.images import UNREADABLE, Rows, UnreadableError

__all__ = [
    "BatchReader",
    "BatchSampler",
    "RandomBatches",
    "ReadBatch",
    "check_batches",
    "load_batches",
    "ordered_batches",
]


class BatchSampler(Protocol):
    """Batches of row numbers, of all processes together; the same for the same epoch, as many in every epoch."""

    def __len__(self) -> int:
        """Batches in an epoch."""
        ...

    def __iter__(self) -> Iterator[list[int]]:
        """The batches of the epoch that was set."""
        ...

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch."""
        ...


class RandomBatches:
    """Every epoch a new order; the last rows that do not fill a batch wait for another epoch.

    Args:
        rows: number of rows.
        batch_size: rows of a batch, at most `rows`.
        seed: of the order.

    Raises:
        ArgumentError: fewer rows than a batch.
    """

    def __init__(self, rows: int, batch_size: int, *, seed: int = 0) -> None:
        if rows < batch_size:
            raise ArgumentError("batch_size", f"be at most the {rows} rows of the data", batch_size, "Make it smaller.")
        self.rows = rows
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.rows // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.randperm(self.rows, generator=torch.Generator().manual_seed(_mix(self.seed, self.epoch))).tolist()
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            yield order[start : start + self.batch_size]


def check_batches(batches: BatchSampler) -> None:
    """Raise `ArgumentError` where a sampler has no `set_epoch` or nothing to give."""
    if not hasattr(batches, "set_epoch"):
        raise ArgumentError(
            "batches",
            "have a method set_epoch(epoch), or a resumed run could not find its place",
            type(batches).__name__,
            "Give it one; RandomBatches in gssf_plug.retrieval shows how.",
        )
    if len(batches) == 0:
        raise ArgumentError("batches", "hold at least one batch", 0, "Make the batches smaller.")


def ordered_batches(rows: int, batch_size: int, processes: int) -> list[list[int]]:
    """All rows in order, for evaluation; no batch has fewer rows than there are processes.

    Raises:
        ArgumentError: fewer rows than processes.
    """
    if rows < processes:
        raise ArgumentError("eval_data", f"have a row for each of {processes} processes", rows, "Use fewer processes.")
    size = max(batch_size, processes)
    starts = [start for start in range(0, rows, size) if start == 0 or rows - start >= processes]
    return [list(range(start, stop)) for start, stop in zip(starts, [*starts[1:], rows], strict=True)]


class ReadBatch(NamedTuple):
    """A collated batch and what could not be read for it, one text per row."""

    batch: Any
    unreadable: list[str]


class BatchReader(Dataset[ReadBatch]):
    """Item i is this process's part of batch i, read and collated.

    Args:
        rows: map-style data set; `__getitems__` is used where it has one.
        collate: list of rows to batch.
        plan: row numbers of each batch, of all processes together.
        process: rank of this process.
        processes: number of processes.
        seed: of the randomness in reading.
        epoch: likewise.
        skip_unreadable: leave out rows that cannot be read and report them (True), or raise (False, default).

    Raises:
        UnreadableError: naming the row, or when no row of the part is left.
    """

    def __init__(
        self,
        rows: Rows,
        collate: Callable[[list[Any]], Any],
        plan: Sequence[list[int]],
        *,
        process: int = 0,
        processes: int = 1,
        seed: int = 0,
        epoch: int = 0,
        skip_unreadable: bool = False,
    ) -> None:
        self.rows = rows
        self.collate = collate
        self.plan = plan
        self.process = process
        self.processes = processes
        self.seed = seed
        self.epoch = epoch
        self.skip_unreadable = skip_unreadable

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, number: int) -> ReadBatch:
        part = self.plan[number][_part(len(self.plan[number]), self.process, self.processes)]
        with _seeded(_mix(self.seed, self.epoch, number, self.process)):
            read, unreadable = self._read(part)
            if not read:
                raise UnreadableError(f"each of the {len(part)} rows of batch {number}", unreadable[0])
            return ReadBatch(self.collate(read), unreadable)

    def _read(self, numbers: list[int]) -> tuple[list[Any], list[str]]:
        if hasattr(self.rows, "__getitems__"):
            try:
                return list(self.rows.__getitems__(numbers)), []
            except UNREADABLE:
                pass  # row by row, to learn which
        read, unreadable = [], []
        for number in numbers:
            try:
                read.append(self.rows[number])
            except UNREADABLE as error:
                failure = UnreadableError(f"row {number} of the data", error)
                if not self.skip_unreadable:
                    raise failure from error
                unreadable.append(str(failure))
        return read, unreadable


def load_batches(reader: BatchReader, *, start: int = 0, workers: int = 0) -> Iterator[ReadBatch]:
    """Batches `start`, `start` + 1, … of the reader; `workers` processes read ahead.

    The loader has a generator of its own: torch's would draw a number from the global one at every start, and a
    resumed run, which starts once more, would not be the unbroken one.
    """
    loader = DataLoader(
        reader,
        batch_size=None,
        sampler=range(start, len(reader)),
        num_workers=workers,
        collate_fn=_as_it_is,
        generator=torch.Generator().manual_seed(0),
    )
    yield from loader


def _as_it_is(item: Any) -> Any:
    return item


def _part(rows: int, process: int, processes: int) -> slice:
    """The contiguous part of one process; the first ones have a row more where it does not come out even."""
    size, more = divmod(rows, processes)
    start = process * size + min(process, more)
    return slice(start, start + size + (process < more))


def _mix(*numbers: int) -> int:
    """One seed from several numbers, such that near numbers give unrelated seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the three global generators, and put them back afterwards."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
