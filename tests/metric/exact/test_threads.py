"""Blocks of work on several threads: what they find, what they leave as it was, and what an error stops."""

import os
import subprocess
import sys
import threading
import time
import weakref
from concurrent import futures
from concurrent.futures import Future

import pytest
import torch

from gssf_plug.metric.exact import threads as module
from gssf_plug.metric.exact.threads import in_threads, slices


@pytest.mark.parametrize(("count", "size"), [(7, 3), (6, 3), (3, 7), (3, 0), (0, 4)])
def test_slices_cover_all_of_them(count, size):
    assert [number for part in slices(count, size) for number in range(count)[part]] == list(range(count))
    assert all(0 < part.stop - part.start <= max(1, size) for part in slices(count, size))


@pytest.mark.parametrize("blocks", [0, 1, 2, 7])
def test_threads_share_blocks_and_keep_their_order(blocks):
    workers = []

    def worker():
        own = []
        workers.append(own)
        return lambda block: own.append(block) or block.start

    given = [slice(number, number + 1) for number in range(blocks)]
    assert module.in_threads(worker, given, 3) == list(range(blocks))
    assert sorted(block.start for own in workers for block in own) == list(range(blocks))
    assert 1 <= len(workers) <= max(1, min(3, blocks))  # a thread that comes too late is not waited for
    with pytest.raises(ZeroDivisionError):
        module.in_threads(lambda: lambda block: 1 // (blocks - block.start - 1), given or [slice(-1, 0)], 3)


def test_work_goes_on_while_the_interpreter_ends():
    """A thread that outlives the main one cannot start others."""
    program = """
import threading, time, torch
from gssf_plug.metric.exact.threads import in_threads

def work():
    time.sleep(0.5)
    print(in_threads(lambda: lambda block: block.start, [slice(0, 1), slice(1, 2)], 2))

threading.Thread(target=work).start()
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "[0, 1]\n", "")


def test_a_thread_that_comes_too_late_keeps_nothing(monkeypatch):
    """Its task is cancelled, and stays in its queue until the thread has time."""
    late = []

    class Helpers:
        def submit(self, run):
            late.append(run)
            return Future()

    monkeypatch.setattr(module, "_helpers", Helpers)
    scores = torch.randn(3)
    held = weakref.ref(scores)
    found = module.in_threads(lambda scores=scores: lambda block: scores[block].sum(), [slice(1), slice(1)], 2)
    held_there = weakref.ref(found[0])
    del scores, found
    assert len(late) == 1
    assert held() is None
    assert held_there() is None


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("taken", [1, 2])
def test_a_task_that_was_refused_and_begins_all_the_same_is_waited_for(taken, waits, monkeypatch):
    """Where no thread can be started any more, `submit` raises, but its task is queued, and a free thread takes it."""
    running = []

    class Helpers:
        def submit(self, run):
            running.append(threading.Thread(target=run))
            running[-1].start()
            if len(running) == taken:
                time.sleep(0.05)
                raise RuntimeError("can't start new thread")
            return Future()

    def work(block):
        time.sleep(0.1)
        return block.start

    helpers = Helpers()
    monkeypatch.setattr(module, "_helpers", lambda: helpers)
    assert in_threads(lambda: work, slices(4, 1), 3, waits=waits) == [0, 1, 2, 3]
    for one in running:
        one.join(timeout=60)


def of_threads(function, count):
    """What a function gives in each of so many threads, all of them at once."""
    together = threading.Barrier(count)

    def work(block):
        together.wait(timeout=60)
        return function()

    return in_threads(lambda: work, [slice(number, number + 1) for number in range(count)], count, waits=True)


def test_the_caller_only_waits_and_torch_takes_one_thread_in_each_of_the_others():
    usual = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        found = of_threads(lambda: (threading.get_ident(), torch.get_num_threads()), 2)
        assert {threads for _, threads in found} == {1}
        assert len({ident for ident, _ in found} | {threading.get_ident()}) == 3
        assert torch.get_num_threads() == 3
        begun = []  # a thread of the user that begins afterwards
        other = threading.Thread(target=lambda: begun.append(torch.get_num_threads()))
        other.start()
        other.join()
        assert begun == [3]
    finally:
        torch.set_num_threads(usual)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_modes_of_the_caller_hold_in_the_others(mode):
    """A thread outside the inference mode may not write what was made within, nor the other way about."""
    with mode():
        table = torch.zeros(4, 3)
        in_threads(lambda: lambda rows: table[rows].add_(1), slices(4, 1), 2, waits=True)
        made = in_threads(lambda: lambda rows: table[rows] + 1, slices(4, 1), 2, waits=True)
        assert all(one.add_(1).eq(3).all() and not one.requires_grad for one in made)


def test_a_tensor_class_of_the_users_has_as_little_say_in_the_others():
    class Own(torch.Tensor):
        @classmethod
        def __torch_function__(cls, *given):
            raise AssertionError("asked")

    table = torch.zeros(4, 3).as_subclass(Own)
    with torch._C.DisableTorchFunction():
        made = in_threads(lambda: lambda rows: table[rows] + 1, slices(4, 1), 2, waits=True)
        assert torch.equal(torch.cat(made), torch.ones(4, 3))


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("held_up", [0.0, 1.0])
def test_threads_that_wait_for_a_core_leave_the_rest_to_the_last(waits, held_up, monkeypatch):
    began = time.perf_counter()
    monkeypatch.setattr(module, "_queued", lambda: held_up * (time.perf_counter() - began))
    workers = []

    def worker():
        own = []
        workers.append(own)

        def work(block):
            time.sleep(0.03)
            own.append(block.start)
            return block.start

        return work

    assert in_threads(worker, slices(12, 1), 3, waits=waits) == list(range(12))
    counts = sorted(len(own) for own in workers)
    assert sum(counts) == 12
    assert max(counts[:-1]) <= 2 if held_up else counts[-1] < 8


def test_a_system_that_does_not_tell_who_waits_for_a_core(monkeypatch):
    def unreadable(path):
        raise OSError(str(path))

    assert module._queued() >= 0
    monkeypatch.setattr(module.Path, "read_text", unreadable)
    assert module._queued() == 0
    assert in_threads(lambda: lambda block: block.start, slices(4, 1), 2, waits=True) == [0, 1, 2, 3]


@pytest.mark.parametrize("waits", [False, True])
def test_a_worker_that_cannot_be_made_is_an_error(waits):
    def worker():
        raise MemoryError

    with pytest.raises(MemoryError):
        in_threads(worker, slices(4, 1), 2, waits=waits)


@pytest.mark.parametrize("waits", [False, True])
def test_an_error_stops_what_has_not_begun_and_is_that_of_the_first_block(waits):
    begun = []

    def work(block):
        begun.append(block.start)
        time.sleep(0.05 if block.start == 2 else 0.1 if block.start == 1 else 0)
        if block.start:
            raise ValueError(str(block.start))

    with pytest.raises(ValueError, match="^1$"):
        in_threads(lambda: work, slices(100, 1), 2, waits=waits)
    assert len(begun) <= 4


def test_an_error_keeps_nothing_of_what_it_left():
    left = []

    def work(block):
        scores = torch.randn(3)
        left.append(weakref.ref(scores))
        raise ValueError(str(scores[block]))

    with pytest.raises(ValueError, match="tensor"):
        in_threads(lambda: work, slices(4, 1), 2, waits=True)
    assert left
    assert all(one() is None for one in left)


def test_work_within_a_block_is_done_by_its_thread():
    """Else each of as many threads as there are would wait for another."""
    count = os.cpu_count() + 1

    def within(block):
        return set(in_threads(lambda: lambda inner: threading.get_ident(), slices(3, 1), 2, waits=True))

    found = in_threads(lambda: within, slices(count, 1), count, waits=True)
    assert [len(idents) for idents in found] == [1] * count


def test_a_thread_begins_where_torch_cannot_take_one(monkeypatch):
    """What an initializer raises would leave its tasks waiting for ever."""

    def refuse(count):
        raise MemoryError

    monkeypatch.setattr(torch, "set_num_threads", refuse)
    with futures.ThreadPoolExecutor(1) as pool:
        pool.submit(module._take_one_thread, threading.Lock()).result(timeout=60)


def test_one_block_is_the_callers():
    assert in_threads(lambda: lambda block: threading.get_ident(), [slice(1)], 2, waits=True) == [threading.get_ident()]


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="a system without fork")
def test_a_forked_child_has_threads_of_its_own():
    program = """
import os, torch
from gssf_plug.metric.exact.threads import in_threads, slices

def squares():
    rows = torch.ones(64, 64)
    return in_threads(lambda: lambda own: (rows[own] @ rows)[0, 0].item(), slices(4, 1), 2, waits=True)

print(squares(), flush=True)
if os.fork() == 0:
    print(squares(), flush=True)
    os._exit(0)
os.wait()
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert (ended.returncode, ended.stdout) == (0, "[64.0, 64.0, 64.0, 64.0]\n" * 2), ended.stderr
