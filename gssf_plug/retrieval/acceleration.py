"""The accelerator that a recipe asks for."""

import os

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs

from gssf_plug.errors import ArgumentError
from gssf_plug.retrieval.config import RetrievalConfig

__all__ = ["check_accelerator", "make_accelerator"]


def make_accelerator(config: RetrievalConfig) -> Accelerator:
    """Accelerator of a recipe. Parameters without a gradient, such as a pooler that is not read, do not stop DDP."""
    return Accelerator(
        cpu=not torch.accelerator.is_available(),  # without it, processes on CPUs alone would silently not meet
        mixed_precision=config.mixed_precision,
        log_with=list(config.trackers) or None,
        project_dir=config.output_dir,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )


def check_accelerator(accelerator: Accelerator, config: RetrievalConfig) -> None:
    """Whether an accelerator that was passed in agrees with the recipe and with how it was launched.

    Raises:
        ArgumentError: another precision; or one process seen where several were launched, which would train as many
            models as there are processes.
    """
    if accelerator.mixed_precision != config.mixed_precision:
        raise ArgumentError(
            "mixed_precision",
            f"agree with the accelerator's, {accelerator.mixed_precision!r}",
            repr(config.mixed_precision),
            "Change one of the two.",
        )
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched > 1 and accelerator.num_processes == 1:
        raise ArgumentError(
            "accelerator",
            f"see the {launched} processes that were launched",
            "one of a single process",
            "On CPUs build it with Accelerator(cpu=True), or leave it to the trainer.",
        )
