"""The best weights of a run: one safetensors file, replaced by a rename, shared tensors kept once.

To publish them, or to load them without the trainer, write a folder: `trainer.load_best()`, then
`trainer.save_model(folder)`.
"""

import logging
import math
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn

from gssf_plug.errors import ArgumentError, CheckpointError
from gssf_plug.evaluation.image_text import TIED_AT_MOST, tied_too_often
from gssf_plug.files import write_atomically
from gssf_plug.retrieval.training.progress import Progress

__all__ = ["BestWeights", "read_weights", "write_weights"]

logger = logging.getLogger(__name__)


class BestWeights:
    """Keeps the weights of the best evaluation so far.

    Args:
        path: file of the best weights.
        measure: name of the measure by which weights are compared; larger is better.
    """

    def __init__(self, path: Path, measure: str) -> None:
        self.path = path
        self.measure = measure

    def improved(self, measures: Mapping[str, float], progress: Progress) -> bool:
        """Whether `measures` are the best yet; notes them in `progress`.

        Never the best are a measure that is not finite, and an evaluation of images and texts in which more than 1 % of
        the queries score their positive and another item alike: a collapsed encoder ranks perfectly where ties are won.

        Raises:
            ArgumentError: the evaluation does not give the measure.
        """
        if self.measure not in measures:
            raise ArgumentError(
                "best", f"be a measure of the evaluation, {sorted(measures)}", self.measure, "Name one."
            )
        score = measures[self.measure]
        progress.evaluations_since_best += 1
        if (reason := _unfit(score, measures)) is not None:
            logger.warning("the evaluation after step %d is not taken as best: %s", progress.step, reason)
            return False
        if progress.best_score is not None and score <= progress.best_score:
            return False
        progress.best_score, progress.best_step, progress.evaluations_since_best = score, progress.step, 0
        return True

    def write(self, model: nn.Module | None) -> None:
        """Write the weights of `model`; None, on a process that only takes part, writes nothing.

        Raises:
            CheckpointError: the disk refuses.
        """
        if model is not None:
            write_weights(model, self.path)

    def load(self, model: nn.Module) -> None:
        """Put the best weights into `model`, where its parameters lie.

        Raises:
            CheckpointError: there are no best weights, or they are damaged.
        """
        read_weights(model, self.path)


def _unfit(score: float, measures: Mapping[str, float]) -> str | None:
    """Why an evaluation cannot be the best one, or None."""
    if not math.isfinite(score):
        return f"its measure is {score}"
    if tied_too_often(measures):
        shares = ", ".join(f"'{name}' is {value:.1f} %" for name, value in measures.items() if name.endswith("_tied"))
        return f"{shares}, and above {TIED_AT_MOST} % ranks say nothing"
    return None


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


def read_weights(model: nn.Module, path: Path) -> None:
    """Load the weights of `model`, every key and no other, on whatever device its parameters are.

    Raises:
        CheckpointError: the file is missing, damaged or of another model.
    """
    try:
        load_model(model, path)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(
            path, f"cannot be loaded ({error})", "Train with eval_data first, and with the same model."
        ) from error
