"""What a Trainer may be asked to do with a Distiller, and what is refused by name before training."""

import inspect
import logging
from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import TrainingArguments

from gssf_plug.arguments import check_module, described
from gssf_plug.distillation.distiller import Distiller
from gssf_plug.errors import ArgumentError
from gssf_plug.wrappers import unwrap

__all__ = [
    "check_arguments",
    "check_base",
    "check_given",
    "check_last_batches",
    "check_optimizer",
    "check_student",
    "show_arguments",
    "warn_of_accumulation",
]

logger = logging.getLogger(__name__)

# Arguments of a Trainer that do not work around a Distiller: what they must be, and the way round.
REFUSED: dict[str, tuple[object, str]] = {
    "parallelism_config": (None, "Launch one process per GPU (DDP); a batch of a Distiller is not split over devices."),
    "use_liger_kernel": (False, "Its kernels change what modules return; patch the student yourself and tap around."),
    "optim_target_modules": (None, "Paths begin with 'student.' here; give an optimizer by `optimizers`."),
}
REFUSED_OPTIMIZERS = ("lomo", "adalomo")


def check_base(base: object) -> None:
    """A class to train with.

    Raises:
        ArgumentError: the value is no class with a `training_step`, as a Trainer has.
    """
    if not isinstance(base, type) or not hasattr(base, "training_step"):
        rule, remedy = "be a Trainer class", "Such as transformers.Trainer, or a subclass of it."
        raise ArgumentError("base", rule, described(base), remedy)


def check_given(distiller: object, model: object, given: Mapping[str, object]) -> None:
    """What a Trainer is made of, before transformers reads it.

    Raises:
        ArgumentError: the distiller is none, the model is no module, or the arguments are no `TrainingArguments`.
    """
    if not isinstance(distiller, Distiller):
        remedy = "Build one: Distiller(student, teacher, pairs)."
        raise ArgumentError("distiller", "be a Distiller", described(distiller), remedy)
    # where a new model is to be made, `check_student` says why not
    check_module("model", model, "Give the distiller's student.", optional="model_init" in given)
    args = given.get("args")
    if args is not None and not isinstance(args, TrainingArguments):
        remedy = "Build them: TrainingArguments(output_dir)."
        raise ArgumentError("args", "be None or TrainingArguments", described(args), remedy)


def check_student(model: nn.Module, distiller: Distiller, model_init: object) -> None:
    """Whether what is trained is the distiller's student, from the beginning to the end.

    Raises:
        ArgumentError: the model is not the distiller's student, or the Trainer would make a new one.
    """
    if model_init is not None:
        raise ArgumentError(
            "model_init",
            "be left out, since a new model would not be the distiller's student",
            "a function",
            "Give model=distiller.student; for a search build Distiller and Trainer anew for each trial.",
        )
    if unwrap(model) is not unwrap(distiller.student):
        raise ArgumentError("model", "be the distiller's student", "another model", "Give model=distiller.student.")


def check_arguments(args: TrainingArguments, *, sharded: bool) -> None:
    """Whether a run is asked for that works: one process or DDP, with whatever of the rest is not refused.

    Raises:
        ArgumentError: the run asks for FSDP, DeepSpeed or nn.DataParallel, or for an argument of `REFUSED`.
    """
    if sharded or args.n_gpu > 1:
        raise ArgumentError(
            "args",
            "ask for one process or DDP",
            "FSDP or DeepSpeed" if sharded else "nn.DataParallel (several GPUs in one process)",
            "Launch one process per GPU with accelerate or torchrun, or write an Accelerate loop.",
        )
    checkpoints: Any = args.activation_checkpointing_kwargs or {}
    if args.world_size > 1 and checkpoints.get("use_reentrant"):
        raise ArgumentError(
            "args.activation_checkpointing_kwargs",
            "have use_reentrant=False in several processes, where DDP looks for layers without gradients",
            "use_reentrant=True",
            "Leave it out: transformers' default is False.",
        )
    for name, (allowed, remedy) in REFUSED.items():
        given = getattr(args, name, allowed)
        if given != allowed:
            raise ArgumentError(f"args.{name}", f"be {allowed} with a Distiller", repr(given), remedy)
    if str(getattr(args.optim, "value", args.optim)) in REFUSED_OPTIMIZERS:
        raise ArgumentError(
            "args.optim",
            "be an optimizer that steps after backward",
            f"{args.optim}",
            "Choose another; gradients of projectors and metrics come with those of the student.",
        )


def check_last_batches(args: TrainingArguments, train: Any, evaluated: Any) -> None:
    """A relational loss would stop the run at a last batch of one example: say so now; of a stream nothing is known.

    Raises:
        ArgumentError: the data set ends in a batch of one example, or all batches hold one.
    """
    for name, size, given in (
        ("train", args.per_device_train_batch_size, train),
        ("eval", args.per_device_eval_batch_size, evaluated),
    ):
        for dataset in given.values() if isinstance(given, dict) else [given]:
            count = len(dataset) if hasattr(dataset, "__len__") else 0
            if count and (size == 1 or (count % size == 1 and not args.dataloader_drop_last)):
                raise ArgumentError(
                    f"{name}_dataset",
                    "not end in a batch of one example, where a loss compares examples with one another",
                    f"{count} examples in batches of {size}",
                    f"Set dataloader_drop_last=True, or change per_device_{name}_batch_size.",
                )


def check_optimizer(absent: Mapping[str, object]) -> None:
    """Whether an optimizer that the user gave holds projectors and metrics.

    Raises:
        ArgumentError: the optimizer lacks parameters of the distiller, which are named.
    """
    if absent:
        raise ArgumentError(
            "optimizers",
            "hold the projectors and metrics, or they would not train",
            f"an optimizer without {sorted(absent)[:3]}",
            "Call distiller.plan(batch), then make the optimizer over distiller.parameters().",
        )


def warn_of_accumulation(distiller: Distiller, steps: int) -> None:
    """Relational losses never see pairs across micro-batches."""
    if distiller.relational and steps > 1:
        logger.warning(
            "%s compares the examples of one micro-batch only: gradient accumulation does not give it the large batch. "
            "Raise per_device_train_batch_size instead, or use a loss per example.",
            sorted({type(loss).__name__ for loss in distiller.losses if getattr(loss, "relational", False)}),
        )


def show_arguments(kind: type, mixin: type) -> None:
    """Let `help`, editors and pages show the arguments of the Trainer underneath, with `distiller` among them."""
    # the first constructor that is not the mixin's; one before the mixin in that order takes the distiller itself
    giver = next(base for base in kind.__mro__ if base is not mixin and "__init__" in vars(base))
    _, *shown = inspect.signature(giver.__init__).parameters.values()  # type: ignore[misc]
    if not issubclass(giver, mixin):
        distiller = inspect.signature(mixin.__init__).parameters["distiller"]  # type: ignore[misc]
        named = [each for each in shown if each.kind is not inspect.Parameter.VAR_KEYWORD]
        shown = [*named, distiller, *shown[len(named) :]]
    kind.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
