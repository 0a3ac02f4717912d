"""Where the batches of a run come from: rows that can be asked for by number, or a stream that only comes along.

Both give the batches of an epoch from any place on, the same whatever the number of processes, and say with which one
the epoch ends. So the trainer does not ask which of the two it has.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import count, islice
from typing import Any

from torch.utils.data import IterableDataset

from gssf_plug.arguments import has_rows
from gssf_plug.errors import ArgumentError, DataError
from gssf_plug.retrieval.data.batches import (
    BatchReader,
    BatchSampler,
    RandomBatches,
    ReadBatch,
    check_batches,
    collated,
    load_batches,
    make_seed,
    own_part,
    plan_epoch,
    seeded,
)
from gssf_plug.retrieval.data.images import Rows

__all__ = ["Collate", "PlannedFeed", "StreamFeed", "check_map_style", "is_stream", "make_feed"]

Collate = Callable[[list[Any]], Mapping[str, Any]]


def is_stream(rows: Any) -> bool:
    """Whether rows come along and cannot be asked for by number: torch's and datasets' IterableDataset, a generator."""
    return isinstance(rows, IterableDataset) or not hasattr(rows, "__getitem__")


def check_map_style(name: str, rows: Any, *, optional: bool = True) -> None:
    """Raise `ArgumentError` where rows that are read by number, in several passes, are a stream; None is no rows.

    A mapping, such as a `DatasetDict`, has names where rows have numbers.
    """
    if rows is None and optional:
        return
    if is_stream(rows) or not has_rows(rows):
        remedy = "Collect it first: datasets.Dataset.from_list(list(stream)), or list(stream)."
        raise ArgumentError(name, "be a data set with a length and rows by number", type(rows).__name__, remedy)


def make_feed(
    rows: Any,
    collate: Collate,
    batches: BatchSampler | None,
    *,
    batch_size: int,
    max_steps: int | None = None,
    workers: int = 0,
    skip_unreadable: bool = False,
    seed: int = 0,
    process: int = 0,
    processes: int = 1,
) -> "PlannedFeed | StreamFeed":
    """The feed of a run; default batches are `RandomBatches`.

    Raises:
        ArgumentError: the data are a stream and the recipe asks for what a stream cannot have: a batch sampler, no
            `max_steps`, processes that read ahead, rows that are skipped.
    """
    if not is_stream(rows):
        check_map_style("train_data", rows)
        sampler = RandomBatches(len(rows), batch_size, seed=seed) if batches is None else batches
        check_batches(sampler)
        return PlannedFeed(
            rows, collate, sampler, workers=workers, skip_unreadable=skip_unreadable, seed=seed, process=process,
            processes=processes,
        )  # fmt: skip
    kind = type(rows).__name__
    needs = [
        ("max_steps", max_steps is not None, "be given where train_data is a stream, whose length nobody knows",
         "Set RetrievalConfig(max_steps=...), or collect the rows: datasets.Dataset.from_list(list(stream))."),
        ("batches", batches is None, "be None where train_data is a stream: its rows have no numbers",
         "Let the stream itself give the rows in their order, for example by its shuffle()."),
        ("num_workers", workers == 0, "be 0 where train_data is a stream, which every reader would read from its start",
         "Leave it at 0, and let the stream read ahead by itself."),
        ("on_unreadable", not skip_unreadable, "be 'raise' where train_data is a stream, which an error ends",
         "Leave damaged rows out inside the stream."),
    ]  # fmt: skip
    for name, held, rule, remedy in needs:
        if not held:
            raise ArgumentError(name, rule, f"a {kind}", remedy)
    return StreamFeed(rows, collate, batch_size, process=process, processes=processes, seed=seed)


class PlannedFeed:
    """Batches of row numbers, read where they are due.

    Args:
        rows: map-style data set.
        collate: function that makes a batch of a list of rows.
        batches: batch sampler of all processes together.
        process: rank of this process.
        processes: number of processes.
        seed: seed of the randomness in reading, such as augmentation.
        skip_unreadable: True leaves out rows that cannot be read and reports them; False raises.
        workers: number of processes that read ahead; 0 reads in this one.
    """

    def __init__(
        self,
        rows: Rows,
        collate: Collate,
        batches: BatchSampler,
        *,
        process: int = 0,
        processes: int = 1,
        seed: int = 0,
        skip_unreadable: bool = False,
        workers: int = 0,
    ) -> None:
        self.rows, self.collate, self.batches, self.workers = rows, collate, batches, workers
        self.how: dict[str, Any] = {
            "process": process, "processes": processes, "seed": seed, "skip_unreadable": skip_unreadable
        }  # fmt: skip

    @property
    def length(self) -> int:
        """Batches in an epoch."""
        return len(self.batches)

    def describe(self) -> dict[str, Any]:
        """What the place in an epoch depends on, for the recipe of a run."""
        return {"rows": len(self.rows), "batches": self.length}

    def epoch(self, number: int, *, start: int = 0) -> Iterator[ReadBatch]:
        """The batches `start`, `start` + 1, … of epoch `number`; the same in every run."""
        reader = BatchReader(self.rows, self.collate, plan_epoch(self.batches, number), epoch=number, **self.how)
        return load_batches(reader, start=start, workers=self.workers)


class StreamFeed:
    """Batches of the rows of a stream, in their order; what does not fill a batch at its end is left out.

    Every process reads the whole stream and keeps its part of each batch. A place in an epoch is found again by reading
    up to it. An epoch is one pass, with `set_epoch` called before it where the stream has that.

    Args:
        rows: iterable of rows, which gives the same rows in every pass of an epoch of the same number.
        collate: function that makes a batch of a list of rows.
        batch_size: number of rows in a batch, of all processes together.
        process: rank of this process.
        processes: number of processes.
        seed: seed of the randomness in reading, such as augmentation.
    """

    def __init__(
        self,
        rows: Iterable[Any],
        collate: Collate,
        batch_size: int,
        *,
        process: int = 0,
        processes: int = 1,
        seed: int = 0,
    ) -> None:
        self.rows, self.collate, self.batch_size = rows, collate, batch_size
        self.process, self.processes, self.seed = process, processes, seed

    length = 0  # nobody knows

    def describe(self) -> dict[str, Any]:
        """What the place in a pass depends on, for the recipe of a run."""
        return {"rows": "a stream"}

    def epoch(self, number: int, *, start: int = 0) -> Iterator[ReadBatch]:
        """The batches `start`, `start` + 1, … of pass `number`.

        Raises:
            ArgumentError: a pass over the stream does not fill one batch.
            DataError: the stream raises at a row, which is named, or it ends before the place where the run was.
        """
        if hasattr(self.rows, "set_epoch"):
            self.rows.set_epoch(number)
        rows, waiting = self._numbered(), None
        for place in count():
            with seeded(make_seed(self.seed, number, place, self.process)):
                full = list(islice(rows, self.batch_size))
                if len(full) < self.batch_size:
                    self._check_end(number, place, start, len(full))
                    break
                if place < start:
                    continue
                own = full[own_part(self.batch_size, self.process, self.processes)]
                batch = collated(self.collate, own, place)
            if waiting is not None:
                yield waiting
            waiting = ReadBatch(batch, [])
        if waiting is not None:
            yield waiting._replace(last=True)  # known only now, one batch ahead

    def _numbered(self) -> Iterator[Any]:
        """The rows; whatever their stream raises names the row."""
        rows, number = iter(self.rows), 0
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except Exception as error:
                remedy = "A stream cannot go on after an error: mend that row, or leave it out."
                said = f"raised {type(error).__name__}: {error}"
                raise DataError(f"row {number} of the stream", said, remedy) from error
            yield row
            number += 1

    def _check_end(self, epoch: int, place: int, start: int, left: int) -> None:
        if place == 0:
            rule = f"give at least the {self.batch_size} rows of a batch in every pass"
            remedy = "A stream is read again for every epoch: give an object whose __iter__ begins anew, or more rows."
            raise ArgumentError("train_data", rule, f"{left} in pass {epoch}", remedy)
        if place <= start:
            problem = f"ends after {place} batches in pass {epoch}, where the run is at batch {start}"
            raise DataError("train_data", problem, "Resume with the stream that the run began with.")
