"""Two real processes give the gradients of one with the whole batch: tokens by hand, and the Trainer (F8).

The Trainer also with activation checkpointing, torch_compile and bf16.
"""

from workers.launching import launch


def test_two_processes_have_the_gradient_of_the_whole_batch(tmp_path):
    printed = launch("workers.distillation_processes", tmp_path, 2, timeout=300)
    assert "2 processes agree" in printed
