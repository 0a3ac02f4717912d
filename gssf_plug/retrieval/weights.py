"""The best weights of a run: one safetensors file, replaced by a rename, shared tensors kept once.

To publish them, or to load them without the trainer, write a folder: `trainer.load_best()`, then
`trainer.save_model(folder)`.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn

from gssf_plug.errors import ArgumentError, CheckpointError
from gssf_plug.files import write_atomically
from gssf_plug.retrieval.progress import Progress

__all__ = ["BestWeights", "read_weights", "write_weights"]


class BestWeights:
    """Keeps the weights of the best evaluation so far.

    Args:
        path: the file.
        measure: by which they are compared; larger is better.
        writes: False for processes that only take part, default True.
    """

    def __init__(self, path: Path, measure: str, *, writes: bool = True) -> None:
        self.path = path
        self.measure = measure
        self.writes = writes

    def keep(self, model: nn.Module, measures: Mapping[str, float], progress: Progress) -> None:
        """Note and write the weights of `model` if its `measures` are the best yet.

        Raises:
            ArgumentError: the evaluation does not give the measure.
            CheckpointError: the disk refuses.
        """
        if self.measure not in measures:
            raise ArgumentError(
                "best", f"be a measure of the evaluation, {sorted(measures)}", self.measure, "Name one."
            )
        score = measures[self.measure]
        if progress.best_score is not None and score <= progress.best_score:
            return
        progress.best_score, progress.best_step = score, progress.step
        if self.writes:
            write_weights(model, self.path)

    def load(self, model: nn.Module, device: torch.device) -> None:
        """Put the best weights into `model`.

        Raises:
            CheckpointError: there are none, or they are damaged.
        """
        # safetensors knows no "cpu:0", which is what Accelerate calls it where there are several processes
        read_weights(model, self.path, "cpu" if torch.device(device).type == "cpu" else str(device))


def write_weights(model: nn.Module, path: Path) -> None:
    """Write the weights of `model`; on failure the earlier file stays.

    Raises:
        CheckpointError: the disk refuses.
    """
    try:
        write_atomically(path, lambda temporary: save_model(model, str(temporary)))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            path,
            f"could not be written ({error})",
            "Free some disk space and call train(resume=True); the earlier best weights are untouched.",
        ) from error


def read_weights(model: nn.Module, path: Path, device: str) -> None:
    """Load the weights of `model`, every key and no other.

    Raises:
        CheckpointError: the file is missing, damaged or of another model.
    """
    try:
        load_model(model, path, device=device)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(
            path, f"cannot be loaded ({error})", "Train with eval_data first, and with the same model."
        ) from error
