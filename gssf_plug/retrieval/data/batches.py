"""Which rows form a batch, and how a process reads its part of it.

A batch is planned as a list of row numbers for all processes together; each process reads its contiguous part, so that
the parts in the order of rank are the batch of a single process. The plan depends on seed and epoch alone. Randomness
inside reading (augmentation in the data set or the collate function: torch's, NumPy's or Python's global generators)
is seeded by seed, epoch, batch and rank: it does not depend on the number of workers, nor on where a run was resumed,
and the generators of the training process are left as they were.
"""

import random
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from gssf_plug.arguments import LARGEST, checked_count, checked_epoch, checked_seed
from gssf_plug.errors import ArgumentError, DataError, GSSFError
from gssf_plug.retrieval.data.images import UNREADABLE, Rows, UnreadableError

__all__ = [
    "BatchReader",
    "BatchSampler",
    "RandomBatches",
    "ReadBatch",
    "check_batches",
    "collated",
    "load_batches",
    "make_seed",
    "ordered_batches",
    "own_part",
    "plan_epoch",
    "read_row",
    "seeded",
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
        rows: number of rows of the data set.
        batch_size: number of rows in a batch, at most `rows`.
        seed: seed of the order; the epoch enters it, too.

    Raises:
        ArgumentError: there are fewer rows than a batch holds.
    """

    def __init__(self, rows: int, batch_size: int, *, seed: int = 0) -> None:
        rows = checked_count("rows", rows, "Give len(data).", most=LARGEST**2)
        batch_size = checked_count("batch_size", batch_size, "Use such as 128.")
        if rows < batch_size:
            raise ArgumentError("batch_size", f"be at most the {rows} rows of the data", batch_size, "Make it smaller.")
        self.rows = rows
        self.batch_size = batch_size
        self.seed = checked_seed(seed)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch."""
        self.epoch = checked_epoch(epoch)

    def __len__(self) -> int:
        return self.rows // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        random_order = torch.Generator().manual_seed(make_seed(self.seed, self.epoch))
        order = torch.randperm(self.rows, generator=random_order).tolist()
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            yield order[start : start + self.batch_size]


def check_batches(batches: BatchSampler) -> None:
    """Raise `ArgumentError` where a sampler has no `set_epoch` or nothing to give."""
    if not hasattr(batches, "set_epoch") or isinstance(batches, type):
        raise ArgumentError(
            "batches",
            "have a method set_epoch(epoch), or a resumed run could not find its place",
            type(batches).__name__,
            "Give it one; RandomBatches in gssf_plug.retrieval shows how.",
        )
    if not hasattr(batches, "__len__") or not hasattr(batches, "__iter__"):
        rule, remedy = "have a length, and give lists of row numbers", "RandomBatches in gssf_plug.retrieval shows how."
        raise ArgumentError("batches", rule, type(batches).__name__, remedy)
    if len(batches) == 0:
        raise ArgumentError("batches", "hold at least one batch", 0, "Make the batches smaller.")


def plan_epoch(batches: BatchSampler, epoch: int) -> list[list[int]]:
    """The batches of one epoch.

    Raises:
        ArgumentError: the sampler gives more or fewer batches than its length says, on which the schedule, the end of
            an epoch and the place where a run is resumed depend.
    """
    batches.set_epoch(epoch)
    said = len(batches)
    plan = [list(batch) for batch in islice(batches, said + 1)]  # an endless sampler is no reason to wait for ever
    if len(plan) != said:
        got = f"{len(plan)}" if len(plan) < said else "more"
        remedy = "Let __len__ give the number of batches that __iter__ gives in every epoch."
        raise ArgumentError("batches", f"give as many batches as its length, {said}", f"{got} in epoch {epoch}", remedy)
    return plan


def ordered_batches(rows: int, batch_size: int, processes: int) -> list[list[int]]:
    """All rows in order, for evaluation; no batch has fewer rows than there are processes.

    Raises:
        ArgumentError: there are fewer rows than processes.
    """
    if rows < processes:
        raise ArgumentError("eval_data", f"have a row for each of {processes} processes", rows, "Use fewer processes.")
    size = max(batch_size, processes)
    # a rest with fewer rows than processes joins the batch before it
    starts = [start for start in range(0, rows, size) if start == 0 or rows - start >= processes]
    return [list(range(start, stop)) for start, stop in zip(starts, [*starts[1:], rows], strict=True)]


class ReadBatch(NamedTuple):
    """A collated batch, what could not be read for it (one text per row), and whether its epoch ends with it."""

    batch: Any
    unreadable: list[str]
    last: bool = False


class BatchReader(Dataset[ReadBatch]):
    """Item i is this process's part of batch i, read and collated.

    Args:
        rows: map-style data set, whose `__getitems__` is used where it has one.
        collate: function that makes a batch of a list of rows.
        plan: row numbers of each batch, of all processes together.
        process: rank of this process.
        processes: number of processes.
        seed: seed of the randomness in reading, such as augmentation.
        epoch: number of the epoch, which enters that randomness.
        skip_unreadable: True leaves out rows that cannot be read and reports them; False (default) raises.

    Raises:
        UnreadableError: a row cannot be read, which is named, or no row of the part is left.
        DataError: the data set raises anything else at a row, which is named.
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
        part = self.plan[number][own_part(len(self.plan[number]), self.process, self.processes)]
        with seeded(make_seed(self.seed, self.epoch, number, self.process)):
            read, unreadable = self._read(part)
            if not read:
                raise UnreadableError(f"each of the {len(part)} rows of batch {number}", unreadable[0])
            return ReadBatch(collated(self.collate, read, number), unreadable, number == len(self.plan) - 1)

    def _read(self, numbers: list[int]) -> tuple[list[Any], list[str]]:
        if hasattr(self.rows, "__getitems__"):
            try:
                return list(self.rows.__getitems__(numbers)), []
            except Exception:  # noqa: S110  # row by row, to learn which
                pass
        read, unreadable = [], []
        for number in numbers:
            try:
                read.append(read_row(self.rows, number))
            except UnreadableError as failure:
                if not self.skip_unreadable:
                    raise
                unreadable.append(str(failure))
        return read, unreadable


def read_row(rows: Rows, number: int) -> Any:
    """Row `number`; whatever its data set raises names it.

    Raises:
        UnreadableError: the row's file is missing or damaged, which a recipe may skip.
        DataError: the data set raises anything else. `StopIteration` would otherwise end the loader as if there were no
            more rows.
    """
    try:
        return rows[number]
    except UNREADABLE as error:
        raise UnreadableError(f"row {number} of the data", error) from error
    except Exception as error:
        raise DataError(
            f"row {number} of the data", f"raised {_said(error)}", f"Try it alone: data[{number}]."
        ) from error


def collated(collate: Callable[[list[Any]], Any], rows: list[Any], number: int) -> Any:
    """The batch of `rows`.

    Raises:
        DataError: the collate function raises `StopIteration`, which would pass for the end of the data.
    """
    try:
        return collate(rows)
    except StopIteration as error:
        remedy = "Give next() a default in the collate function, or look why its iterator is empty."
        raise DataError(f"batch {number} of the data", f"raised {_said(error)} in collate", remedy) from error


def _said(error: Exception) -> str:
    text = str(error).partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def load_batches(reader: BatchReader, *, start: int = 0, workers: int = 0) -> Iterator[ReadBatch]:
    """Batches `start`, `start` + 1, … of the reader; `workers` processes read ahead.

    The loader has a generator of its own: torch's would draw a number from the global one at every start, and a
    resumed run, which starts once more, would not be the unbroken one.
    """
    loader = DataLoader(
        _Told(reader),
        batch_size=None,
        sampler=range(start, len(reader)),
        num_workers=workers,
        collate_fn=_as_it_is,
        generator=torch.Generator().manual_seed(0),
    )
    for read in loader:
        if isinstance(read, GSSFError):
            raise read
        yield read


class _Told(Dataset[ReadBatch | GSSFError]):
    """Errors of ours as items: torch raises what comes out of a worker as RuntimeError, if it cannot make it anew."""

    def __init__(self, reader: BatchReader) -> None:
        self.reader = reader

    def __getitem__(self, number: int) -> ReadBatch | GSSFError:
        try:
            return self.reader[number]
        except GSSFError as error:
            error.add_note("".join(traceback.format_exception(error)))  # a traceback does not leave its process
            return error


def _as_it_is(item: Any) -> Any:
    return item


def own_part(rows: int, process: int, processes: int) -> slice:
    """The contiguous part of one process; the first ones have a row more where it does not come out even."""
    size, more = divmod(rows, processes)
    start = process * size + min(process, more)
    return slice(start, start + size + (process < more))


def make_seed(*numbers: int) -> int:
    """One seed from several numbers, such that near numbers give unrelated seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
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
