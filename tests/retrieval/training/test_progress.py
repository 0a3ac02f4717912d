"""Where a run is, how it is asked to end, and how it may fail on its way."""

import os
import pickle
import signal
import threading

import pytest
import torch

from gssf_plug.errors import GSSFError
from gssf_plug.retrieval.training.progress import EXIT_CODE, Interruption, NotFiniteError, Progress

CPU = torch.device("cpu")


def test_a_step_of_several_batches_and_the_end_of_an_epoch():
    progress = Progress()
    assert progress.next_step() == "step 1 (epoch 1, batch 1)"
    progress.advance(2, epoch_ended=False)
    assert (progress.step, progress.epoch, progress.batch) == (1, 0, 2)
    progress.advance(1, epoch_ended=True)
    assert (progress.step, progress.epoch, progress.batch) == (2, 1, 0)
    assert progress.next_step() == "step 3 (epoch 2, batch 1)"


@pytest.fixture
def heard():
    """What a handler of the caller's own heard."""
    calls = []
    before = signal.signal(signal.SIGTERM, lambda *_: calls.append(1))
    yield calls
    signal.signal(signal.SIGTERM, before)


def test_a_request_to_end_is_remembered_and_the_callers_handler_comes_back(heard):
    handler = signal.getsignal(signal.SIGTERM)
    with Interruption() as interruption:
        assert not interruption.requested(CPU)
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.requested(CPU)
        assert interruption.requested(CPU)
    assert not heard
    assert signal.getsignal(signal.SIGTERM) is handler
    assert EXIT_CODE == 143


def test_a_second_request_goes_to_the_callers_handler(heard):
    with Interruption():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
    assert heard == [1]


def test_a_thread_cannot_listen_and_goes_on(heard):
    handler, found = signal.getsignal(signal.SIGTERM), []

    def run():
        with Interruption() as interruption:
            found.append((signal.getsignal(signal.SIGTERM), interruption.requested(CPU)))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [(handler, False)]


def test_an_error_puts_the_handler_back(heard):
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyError), Interruption():
        raise KeyError
    assert signal.getsignal(signal.SIGTERM) is handler


def test_a_number_that_is_none_says_where_and_what_to_do():
    error = NotFiniteError("the loss is nan in step 5")
    assert isinstance(error, GSSFError)
    assert isinstance(error, ArithmeticError)
    assert str(error).startswith("the loss is nan in step 5. The weights are those before this step, and the last")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
