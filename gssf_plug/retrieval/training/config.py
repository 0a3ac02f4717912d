"""RetrievalConfig: what a training run is, in one frozen dataclass that is checked at once."""

import math
import os
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from gssf_plug.errors import ArgumentError, near_matches

__all__ = ["RetrievalConfig"]


@dataclass(frozen=True, kw_only=True)
class RetrievalConfig:
    """How a run goes: what may be said of it in a file.

    Args:
        output_dir: folder of the run: checkpoints, best weights, log, and the picture of its curves.
        epochs: passes over the training data, where `max_steps` is None.
        max_steps: optimizer steps of the whole run, over as many passes as they take; None (default) means `epochs`.
            A stream of training rows, whose length nobody knows, needs it.
        batch_size: rows of one batch, of all processes together: a run on eight GPUs sees the batches of one.
        eval_batch_size: rows encoded at once in evaluation, of all processes together.
        accumulation: batches per optimizer step; their losses are averaged (negatives come from one batch each).
        chunk_size: rows that each process encodes at once in training; None (default) encodes its part whole. A batch
            of any size then takes the memory of a chunk, with the gradient of the whole, for a second forward pass.
        learning_rate: learning rate of every parameter that no other rate is named for.
        metric_learning_rate: learning rate of the metric's parameters. They start neutral and need a higher rate than
            encoders; 2e-2 ruins them.
        encoder_learning_rate: learning rate of the encoders, where they are pretrained; None takes `learning_rate`.
        image_encoder_learning_rate: learning rate of the encoder of images alone, as in VSE∞; None takes
            `encoder_learning_rate`.
        text_encoder_learning_rate: learning rate of the encoder of texts alone; None takes `encoder_learning_rate`.
        frozen_encoder_epochs: first epochs in which the rate of encoders is 0. Their gradients are still computed, and
            count where they are clipped.
        loss_learning_rate: learning rate of the loss's parameters, such as proxies or a classifier; None takes
            `learning_rate`.
        weight_decay: AdamW's decay of weights; never on metric, loss, biases, normalisation layers or other vectors and
            scalars.
        warmup: share of the steps in which the rates rise linearly from 0, 0 … 1.
        schedule: course of the rates: "cosine" or "linear" to 0, "step" down at `decay_at`, "constant".
        decay_at: shares of the steps at which "step" multiplies the rates by `decay_factor`; default 0.6, VSE∞'s 15 of
            25 epochs.
        decay_factor: number that the rates are multiplied by at each such step, above 0.
        max_gradient_norm: clip the norm of all gradients to this; None does not clip.
        mixed_precision: "no", "bf16" or "fp16", Accelerate's.
        seed: seed of shuffling, augmentation and dropout.
        eval_every: optimizer steps between evaluations; None means every epoch.
        checkpoint_every: optimizer steps between checkpoints; None means every epoch.
        keep_checkpoints: number of the last checkpoints that stay on disk.
        best: measure by which the best weights are kept; larger is better.
        patience: evaluations in a row without a better `best` after which the run ends early; None (default) goes on.
        on_nan: a loss or gradient that is not finite "stop"s the run or lets it "skip" the step.
        on_unreadable: a row that cannot be read "raise"s, or is "skip"ped and counted.
        num_workers: processes that read data; 0 reads in this one. Results do not depend on it.
        log_every: optimizer steps between lines of the log.
        trackers: names of Accelerate trackers, such as ("tensorboard",).
        progress: show a progress bar with the loss and the best measure, and a line after every evaluation.
        plot: draw the curves of the run into training.png at its end, where matplotlib is installed.

    Raises:
        ArgumentError: a value of another type or outside its range.
    """

    output_dir: str | os.PathLike[str]
    epochs: int = 10
    max_steps: int | None = None
    batch_size: int = 128
    eval_batch_size: int = 256
    accumulation: int = 1
    chunk_size: int | None = None
    learning_rate: float = 5e-4
    metric_learning_rate: float = 2e-3
    encoder_learning_rate: float | None = None
    image_encoder_learning_rate: float | None = None
    text_encoder_learning_rate: float | None = None
    frozen_encoder_epochs: int = 0
    loss_learning_rate: float | None = None
    weight_decay: float = 1e-4
    warmup: float = 0.05
    schedule: Literal["cosine", "linear", "step", "constant"] = "cosine"
    decay_at: tuple[float, ...] = (0.6,)
    decay_factor: float = 0.1
    max_gradient_norm: float | None = 2.0
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    seed: int = 0
    eval_every: int | None = None
    checkpoint_every: int | None = None
    keep_checkpoints: int = 2
    best: str = "rsum"
    patience: int | None = None
    on_nan: Literal["stop", "skip"] = "stop"
    on_unreadable: Literal["raise", "skip"] = "raise"
    num_workers: int = 0
    log_every: int = 10
    trackers: tuple[str, ...] = ()
    progress: bool = True
    plot: bool = True

    def __post_init__(self) -> None:
        """Check every field."""
        hints = get_type_hints(type(self))
        for field in fields(self):
            _check_type(field.name, getattr(self, field.name), hints[field.name])
        for name in _AT_LEAST_ONE:
            _check_range(name, getattr(self, name), 1, math.inf)
        for name in _AT_LEAST_ZERO:
            _check_range(name, getattr(self, name), 0, math.inf)
        _check_range("warmup", self.warmup, 0, 1)
        for share in self.decay_at:
            _check_range("decay_at", share, 0, 1)
        if self.decay_factor == 0:
            raise ArgumentError("decay_factor", "be above 0", 0, "With 0 nothing would train afterwards.")
        if self.max_gradient_norm == 0:
            raise ArgumentError("max_gradient_norm", "be above 0, or None", 0, "With 0 nothing would train.")

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON-able values."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        lists = {name: list(value) for name, value in values.items() if isinstance(value, tuple)}
        return {**values, "output_dir": os.fspath(self.output_dir), **lists}

    def changes_results(self) -> dict[str, Any]:
        """The fields that a resumed run must share with the one it continues."""
        return {name: value for name, value in self.to_json().items() if name not in _FREE_ON_RESUME}


_AT_LEAST_ONE = (
    "epochs", "max_steps", "batch_size", "eval_batch_size", "accumulation", "chunk_size", "eval_every",
    "checkpoint_every", "keep_checkpoints", "log_every", "patience",
)  # fmt: skip
_AT_LEAST_ZERO = (
    "learning_rate", "metric_learning_rate", "encoder_learning_rate", "image_encoder_learning_rate",
    "text_encoder_learning_rate", "frozen_encoder_epochs", "loss_learning_rate", "weight_decay", "decay_factor",
    "max_gradient_norm", "seed", "num_workers",
)  # fmt: skip
_FREE_ON_RESUME = {
    "output_dir", "eval_batch_size", "checkpoint_every", "keep_checkpoints", "on_nan", "num_workers", "trackers",
    "progress", "patience", "plot",
}  # fmt: skip

LARGEST_FLOAT = 1e308  # infinity is above it, and so are numbers that torch cannot take


def _check_type(name: str, value: Any, hint: Any) -> None:
    """YAML gives `5e-4` as a string and any Literal unchecked, so nothing is taken on trust."""
    if get_origin(hint) is Literal:
        if not isinstance(value, str) or value not in get_args(hint):
            raise ArgumentError(
                name, f"be one of {get_args(hint)}", repr(value), near_matches(str(value), hint.__args__)
            )
        return
    if get_origin(hint) is tuple:
        right = isinstance(value, tuple) and all(_has_type(item, (get_args(hint)[0],)) for item in value)
    else:
        right = _has_type(value, tuple(get_origin(part) or part for part in get_args(hint) or (hint,)))
    if not right:
        wanted = getattr(hint, "__name__", None) if not get_args(hint) else str(hint)
        remedy = "In YAML write 0.0005, or 5.0e-4: '5e-4' is read as text." if isinstance(value, str) else "Convert it."
        raise ArgumentError(name, f"be of type {wanted}", f"{value!r} of type {type(value).__name__}", remedy)


def _has_type(value: Any, types: tuple[type, ...]) -> bool:
    """A number is no truth value; a whole number will do for a float."""
    if isinstance(value, bool):
        return bool in types
    return isinstance(value, (*types, int) if float in types else types)


def _check_range(name: str, value: float | None, lowest: float, highest: float) -> None:
    # compared as it came: a whole number of hundreds of digits is no float
    if value is not None and not (lowest <= value <= highest and abs(value) < LARGEST_FLOAT):
        bounds = f"at least {lowest}" if highest == math.inf else f"between {lowest} and {highest}"
        raise ArgumentError(name, f"be {bounds} and finite", value, "See the description in RetrievalConfig.")
