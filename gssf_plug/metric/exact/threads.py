"""Blocks of work on several threads, in each of which torch's own operations take one.

A product that torch spreads over its threads ends at a barrier, after which they turn idle for some milliseconds and
hold the cores up. Where each thread takes whole blocks, nothing waits for others until all is done, but for Python's
lock: a thread that holds it while other processes have its core stops all others. So on a busy machine threads go.
"""

import functools
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from threading import Event, Lock, Thread, local
from typing import TypeVar

import torch

__all__ = ["in_threads", "slices"]

HELD_UP = 0.3  # share of its time that a thread waits for a core, where it had better go
LOOKS_AFTER = 0.02  # seconds

OWN = local()  # `helps`: in threads that work for others

R = TypeVar("R")
B = TypeVar("B")


def slices(count: int, size: int) -> list[slice]:
    """Slices of `count` things, of `size` each, at least 1, but the last."""
    size = max(1, size)
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def in_threads(
    worker: Callable[[], Callable[[B], R]], blocks: Sequence[B], threads: int, *, waits: bool = False
) -> list[R]:
    """What workers make of each block, in order: one for each thread, of which there are no more than blocks.

    Args:
        worker: makes what works on one block after the other.
        blocks: what is worked on.
        threads: how many work, at least 1.
        waits: whether the caller only waits, as it must where blocks are torch's work: its operations take one thread
            in each of the others, and all of torch's in the caller. Default False. Within the work on a block the
            thread does all by itself: else all might wait, and none be left to work.

    Raises:
        Exception: that of the first block which fails; no block is begun after one did.
    """
    threads = 1 if hasattr(OWN, "helps") else min(threads, len(blocks))
    return _shared(worker, blocks, threads, waits) if threads > 1 else list(map(worker(), blocks))


def _shared(worker: Callable[[], Callable[[B], R]], blocks: Sequence[B], threads: int, waits: bool) -> list[R]:
    """The same by two threads or more."""
    found: dict[int, R] = {}
    failed: dict[int, Exception] = {}
    waiting = iter(enumerate(blocks))  # so that a thread that others hold up does fewer of them
    workers, crew, over = [worker], _Crew(), Event()
    inference = torch.is_inference_mode_enabled()

    def run() -> None:
        work, watch = workers[0](), crew.join()
        for number, block in waiting:
            try:
                found[number] = work(block)
            except Exception as error:
                failed[number] = error
                _exhaust(waiting)
            if watch.is_held_up() and crew.lets_go():
                return
        over.set()

    def run_apart() -> None:
        try:
            # modes are the thread's own, and so is what `on_plain_tensors` sets
            with torch.inference_mode(inference), torch.no_grad(), torch._C.DisableTorchFunction():
                run()
        except BaseException:
            over.set()
            raise

    others: list[Future[None]] = []
    asked = 0
    try:
        with suppress(RuntimeError):  # the interpreter ends, or starts no more threads: with those that there are, then
            for _ in range(threads if waits else threads - 1):
                others.append(Future())  # known before it can begin, as even a task that was refused may
                _helpers().submit(functools.partial(_settle, others[-1], run_apart))
                asked += 1
        if not (waits and asked):
            run()
        over.wait()  # what has begun by then is waited for below
    finally:
        _exhaust(waiting)
        begun = [other for other in others if not other.cancel()]
        wait(begun)
        workers.clear()  # what was cancelled stays in its queue for a while, and would keep the scores
    for other in begun:
        other.result()
    _raise_first(failed)
    return [found.pop(number) for number in range(len(blocks))]  # what was cancelled would keep these, too


def _raise_first(failed: dict[int, Exception]) -> None:
    """The error of the first block: those before it were begun before, so that it is the same whatever threads do."""
    if failed:
        try:
            raise failed[min(failed)]
        finally:
            failed.clear()  # else it would keep itself, and all that its frames hold


class _Watch:
    """Tells whether the calling thread waited for a core for much of its time lately."""

    def __init__(self) -> None:
        self._looked, self._queued, self._first = time.perf_counter(), _queued(), True

    def is_held_up(self) -> bool:
        now = time.perf_counter()
        if now - self._looked < LOOKS_AFTER:
            return False
        before, self._queued = self._queued, _queued()
        held_up = self._queued - before > HELD_UP * (now - self._looked)
        first, self._looked, self._first = self._first, now, False
        return held_up and not first  # at first torch's own threads have the cores, as they do for 8 ms after a product


class _Crew:
    """Threads that work on the same blocks."""

    def __init__(self) -> None:
        self._count, self._alone = 0, Lock()

    def join(self) -> _Watch:
        with self._alone:
            self._count += 1
        return _Watch()

    def lets_go(self) -> bool:
        """Whether one of them may go, as the last one may not."""
        with self._alone:
            if self._count == 1:
                return False
            self._count -= 1
            return True


def _settle(future: Future[None], run: Callable[[], None]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        run()
        future.set_result(None)
    except BaseException as error:
        future.set_exception(error)


def _exhaust(some: Iterable[object]) -> None:
    for _ in some:
        pass


def _queued() -> float:
    """Seconds that the calling thread was ready and waited for a core; 0 where the system does not tell."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) * 1e-9
    except (OSError, IndexError):
        return 0.0


@functools.cache
def _helpers() -> ThreadPoolExecutor:
    """Threads that stay: a new one starts on the core of its maker, while torch's own keep the others busy for 8 ms."""
    torch.get_num_threads()  # settles that of the caller, before others change what it would begin with
    begin = functools.partial(_take_one_thread, Lock())
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="gssf-plug", initializer=begin)


def _take_one_thread(alone: Lock) -> None:
    """Have torch's operations take one thread in this one, and as many as before in threads that are still to begin."""
    OWN.helps = True
    with alone, suppress(RuntimeError, MemoryError):  # what an initializer raises would leave all tasks waiting
        usual = torch.get_num_threads()
        torch.set_num_threads(1)  # the number is this thread's own, and that of all that have not asked for theirs yet
        restoring = Thread(target=torch.set_num_threads, args=(usual,))
        restoring.start()
        restoring.join()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_helpers.cache_clear)  # a child has none of them
