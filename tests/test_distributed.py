"""Gathering over processes: real processes, uneven counts, the gradient of the whole batch under DDP."""

import socket

import torch
from workers import launching

from gssf_plug.distributed import gather, gather_detached, process_count


def test_one_process_is_the_identity():
    rows = torch.randn(3, 2, requires_grad=True)
    assert process_count() == 1
    assert gather(rows) is rows
    ids = torch.arange(3)
    assert torch.equal(gather_detached(ids), ids)
    assert not gather_detached(rows).requires_grad


def test_two_processes_have_the_gradient_of_the_whole_batch(tmp_path):
    counts = ["4,4", "5,3", "8,0"]
    said = launching.launch("workers.gathering", tmp_path, 2, *counts)
    assert said.count("2 processes agree") == len(counts)


def test_a_group_is_left_with_ddp_in_hand(tmp_path):
    """Without `hold_group` this hangs within a few turns; the worker then ends itself and says where."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said = launching.launch("workers.process_group", tmp_path, 2, str(port))
    assert said.count("both came to the end") == 2
