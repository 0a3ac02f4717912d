"""DistillationTrainer: transformers' Trainer whose loss is a Distiller's; the same over any other Trainer class.

What is trained and wrapped (DDP, mixed precision, the optimizer) is the distiller, so gradients of student, projectors
and metrics are synchronised together; what is saved, evaluated and shown to callbacks is the student.

    loss            weighted sum of the distiller's terms, plus `task_weight` times the loss of the Trainer underneath,
                    which keeps its own mean (over the tokens of a whole step, where it has one)
    accumulation    the loss is a mean over the micro-batch, divided by the steps: for losses per example and equal
                    micro-batches this is the large batch, exactly. Relational losses never see pairs across
                    micro-batches; a warning says so
    weight decay    never on metrics, scales and variances: zero is not their neutral value
    saving          a plain student, loaded by `from_pretrained`; projectors and metrics in its folder "distillation"
    resuming        student (read as `from_pretrained` reads it), projectors, metrics, optimizer, schedule, data order
                    and random state; on another number of processes too, where the batch of all processes stays what
                    it was: anything else is refused

One process or DDP. FSDP, DeepSpeed and nn.DataParallel are refused: use an Accelerate loop around the Distiller.
"""

import logging
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import DynamoBackend
from torch import Tensor, nn
from transformers import ProgressCallback, Trainer

from gssf_plug.distillation.checkpoint import check_batch, find_checkpoint, restore_student, write_batch
from gssf_plug.distillation.columns import TeacherColumns, take_first_rows
from gssf_plug.distillation.compatibility import (
    check_arguments,
    check_base,
    check_given,
    check_last_batches,
    check_optimizer,
    check_student,
    show_arguments,
    warn_of_accumulation,
)
from gssf_plug.distillation.distiller import Distiller
from gssf_plug.distillation.module_paths import is_compiled
from gssf_plug.distillation.plots import plot_training
from gssf_plug.distributed import hold_group
from gssf_plug.files import own_folder
from gssf_plug.wrappers import unwrap

__all__ = ["DistillationMixin", "DistillationTrainer", "distillation_trainer"]

if TYPE_CHECKING:  # mixed into a Trainer whose attributes are there; at run time it may be any Trainer class
    from matplotlib.figure import Figure

    Above = Trainer
else:
    Above = object

logger = logging.getLogger(__name__)
PARTS = "distillation"
SHOW_SECONDS = 1.0  # between two numbers in the progress bar: to read a loss waits for the device


class DistillationMixin(Above):
    """Put before a Trainer class: `class MyTrainer(DistillationMixin, SFTTrainer)`, or `distillation_trainer(base)`.

    Args:
        distiller: the distiller around the very student that is given as `model`. It is planned here on the first rows
            of the training data, where it is not planned yet.
        args: positional arguments of the Trainer underneath, in the order of its own signature.
        kwargs: keyword arguments of the Trainer underneath.

    Raises:
        ArgumentError: the model is not the distiller's student; the run asks for FSDP, DeepSpeed, nn.DataParallel or
            another argument of `gssf_plug.distillation.compatibility.REFUSED`; two features cannot be compared; or the
            last batch of a relational loss would hold one example.
    """

    loss_is_scaled_for_ga: bool | None = False  # a mean over the micro-batch; the Trainer divides by the steps

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        show_arguments(cls, DistillationMixin)

    def __init__(self, *args: Any, distiller: Distiller, **kwargs: Any) -> None:
        check_given(distiller, kwargs.get("model", args[0] if args else None), kwargs)
        self.distiller = distiller
        self._parts: dict[str, list[Tensor]] = {}
        self._shown = 0.0
        super().__init__(*args, **kwargs)
        check_student(self._student(), distiller, self.model_init)
        check_arguments(self.args, sharded=self.is_fsdp_enabled or self.is_deepspeed_enabled)
        distiller.student = self._student()
        ddp = self.accelerator.ddp_handler
        if ddp is not None and self.args.ddp_find_unused_parameters is None:
            # Layers above the last tap get no gradient. With checkpointing Trainer would not look for them, and DDP
            # would leave the gradients of whole buckets as each process has them.
            ddp.find_unused_parameters = True
        self.can_return_loss = True  # evaluation needs no labels
        if not distiller.planned:
            distiller.plan(self._prepare_inputs(self._first_batch()))
        distiller.to(self.args.device)
        if distiller.relational and self.args.world_size == 1:
            check_last_batches(self.args, self.train_dataset, self.eval_dataset)
        warn_of_accumulation(distiller, self.args.gradient_accumulation_steps)
        for name, weight in distiller.weights().items():
            logger.info("distillation term %s, weight %g", name, weight)

    def plot(self, *, title: str = "") -> "Figure":
        """The curves of the run so far: the loss and each of its terms; see `gssf_plug.distillation.plots`."""
        return plot_training(self.state.log_history, weights=self.distiller.weights(), title=title)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The distiller's loss, a mean over the micro-batch; `num_items_in_batch` goes to the task loss, if any."""
        student = self._student()
        if unwrap(model) is not self.distiller:  # evaluation hands over the student
            self.distiller.train(student.training)
            model = self.distiller
        own_loss = partial(self._run_with_task_loss, return_outputs, num_items_in_batch)
        run = own_loss if self.distiller.task_weight else None
        losses, outputs = model(inputs, run=run, return_outputs=True)
        for name, value in losses.items():
            if name != "loss":
                key = name if student.training else f"eval_{name}"
                self._parts.setdefault(key, []).append(value.detach())
        if not return_outputs:
            return losses["loss"]
        return losses["loss"], _with_loss_first(losses["loss"], outputs["outputs"] if run else outputs)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """As in the Trainer underneath; the progress bar shows the distillation loss."""
        loss = super().training_step(*args, **kwargs)
        bars = [c.training_bar for c in self.callback_handler.callbacks if isinstance(c, ProgressCallback)]
        if bars and bars[0] is not None and time.monotonic() - self._shown >= SHOW_SECONDS:
            weights = self.distiller.weights()
            # the newest value of each pair; the task's own loss is the Trainer's to show
            last = [weights[n] * values[-1] for n, values in self._parts.items() if n != "task" and n in weights]
            bars[0].set_postfix(distillation=f"{float(sum(last)):.4g}")
            self._shown = time.monotonic()
        return loss

    def prediction_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """As in the Trainer underneath; a batch without labels has a loss, too."""
        names = self.label_names
        if any(inputs.get(name) is None for name in names):
            self.label_names = []
        try:
            return super().prediction_step(model, inputs, *args, **kwargs)
        finally:
            self.label_names = names

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Over student, projectors and losses, whatever the Trainer underneath puts into it (P1)."""
        given = self.optimizer is not None
        optimizer = super().create_optimizer(self.distiller if model is None else model)
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        named = {n: p for n, p in self.distiller.named_parameters() if p.requires_grad and not n.startswith("student.")}
        absent = {name: parameter for name, parameter in named.items() if id(parameter) not in held}
        if given:
            check_optimizer(absent)
        decayed = set(self.get_decay_parameter_names(self.distiller))
        for decays in (True, False):
            parameters = [parameter for name, parameter in absent.items() if (name in decayed) == decays]
            if parameters:
                optimizer.add_param_group(
                    {"params": parameters, "weight_decay": self.args.weight_decay if decays else 0.0}
                )
        return optimizer

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """As in the Trainer, without the parameters of losses: metrics, scales, variances."""
        names = super().get_decay_parameter_names(model)
        return [name for name in names if not name.startswith("losses.")]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the mean of each part since the last log."""
        for prefix, marker in (("", "loss"), ("eval_", "eval_loss")):
            if marker in logs:
                logs.update(self._drain(prefix))
        super().log(logs, start_time)

    def _drain(self, prefix: str) -> dict[str, float]:
        chosen = [key for key in self._parts if key.startswith("eval_") == bool(prefix)]
        means = {key: torch.stack(self._parts.pop(key)).float().mean() for key in chosen}
        return {key: float(self.accelerator.gather(value).mean()) for key, value in means.items()}

    def _run_with_task_loss(
        self, return_outputs: bool, items: Tensor | int | None, student: nn.Module, batch: Any
    ) -> dict[str, Any]:
        """The Trainer underneath computes the student's own loss; its outputs only where they are asked for."""
        inputs = {name: value for name, value in batch.items() if name not in self.distiller.foreign_columns(batch)}
        outputs = None
        if return_outputs:
            loss, outputs = super().compute_loss(student, inputs, return_outputs=True, num_items_in_batch=items)
        else:  # SFTTrainer would form all logits for them
            loss = super().compute_loss(student, inputs, num_items_in_batch=items)
        if student.training and self._is_step_mean(items):
            # A mean over the tokens of all micro-batches already, which training_step divides by their number.
            loss = loss * self.current_gradient_accumulation_steps
        return {"loss": loss, "outputs": outputs}

    def _is_step_mean(self, items: Tensor | int | None) -> bool:
        """Whether the Trainer underneath divides its loss by the items of the whole step; its own rule."""
        declared: bool | None = super().loss_is_scaled_for_ga
        counted = (self.model_accepts_loss_kwargs and items is not None) or self.compute_loss_func is not None
        return counted if declared is None else declared

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As in the Trainer underneath; an unfinished checkpoint is none. The student comes out plain."""
        if resume_from_checkpoint:
            resume_from_checkpoint = find_checkpoint(resume_from_checkpoint, str(self.args.output_dir))
        compiled = is_compiled(self._student())
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            if not compiled:
                self._student()._compiled_call_impl = None
            self.distiller.remove()

    def _init_training_state(
        self, max_steps: int, num_update_steps_per_epoch: int, num_train_epochs: int, *args: Any, **kwargs: Any
    ) -> Any:
        """A run that has all its steps has none left; transformers 5.24 would take one more."""
        begun = super()._init_training_state(max_steps, num_update_steps_per_epoch, num_train_epochs, *args, **kwargs)
        return (num_train_epochs, 0) if self.state.global_step >= max_steps else begun

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        """Let the Trainer wrap the distiller; to everything else the model is the student.

        With `torch_compile` the student is compiled and not the distiller, whose work between the models (teacher,
        shapes that are data, losses) would only break graphs.
        """
        hold_group()  # for a launched script that leaves the group with the trainer in hand
        student, plugin = self._student(), self.accelerator.state.dynamo_plugin
        backend = plugin.backend
        if backend != DynamoBackend.NO and not is_compiled(student):
            student.compile(**plugin.to_kwargs())
        plugin.backend = DynamoBackend.NO
        self.model = self.model_wrapped = self.distiller
        try:
            return super()._prepare_for_training(*args, **kwargs)
        finally:
            plugin.backend = backend
            self.model = student
            self.callback_handler.model = student

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            self.distiller.save_parts(own_folder(Path(output_dir or str(self.args.output_dir)), PARTS))

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self.args.should_save:
            write_batch(Path(output_dir) / PARTS, self.args, self._train_batch_size)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *rest: Any) -> None:
        if not self.args.auto_find_batch_size:
            check_batch(Path(resume_from_checkpoint) / PARTS, self.args, self._train_batch_size)
        super()._load_from_checkpoint(resume_from_checkpoint, *rest)
        self._restore(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._restore(str(self.state.best_model_checkpoint))

    def _restore(self, folder: str) -> None:
        """What the Trainer underneath left out or does not know: renamed tensors of the student, projectors, losses."""
        restore_student(self._student(), folder)
        self.distiller.load_parts(Path(folder) / PARTS)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Names that the raw file lacks are looked for by `restore_student`, which refuses what it does not find."""

    def _remove_unused_columns(self, dataset: Any, description: str | None = None) -> Any:
        """Columns of the student and of the teacher; else the teacher would silently get none of its own."""
        self._set_signature_columns_if_needed()
        own: Any = self._signature_columns
        both: Any = [*own, *self.distiller.teacher.columns(dataset.column_names)]
        self._signature_columns = both
        try:
            return super()._remove_unused_columns(dataset, description)
        finally:
            self._signature_columns = own

    def _get_collator_with_removed_columns(self, data_collator: Any, description: str | None = None) -> Any:
        if not self.args.remove_unused_columns:
            return data_collator
        self._set_signature_columns_if_needed()
        own: Any = self._signature_columns
        return TeacherColumns(data_collator, frozenset(own), self.distiller.teacher.columns)

    def _first_batch(self) -> Any:
        rows = take_first_rows(self, max(self.args.per_device_train_batch_size, 2))
        reads: Any = super().get_train_dataloader
        if reads.__func__ is not Trainer.get_train_dataloader:
            return self.data_collator(rows)  # a Trainer that reads data in its own way drops no column first
        return self._get_collator_with_removed_columns(self.data_collator)(rows)

    def _student(self) -> nn.Module:
        assert isinstance(self.model, nn.Module)
        return self.model


class DistillationTrainer(DistillationMixin, Trainer):
    """transformers' Trainer with a Distiller; see the module's text.

    Example:
        trainer = DistillationTrainer(model=student, args=args, train_dataset=data, distiller=distiller)
        trainer.train()
        trainer.save_model("student/")
    """


def distillation_trainer(base: type[Trainer]) -> type[Trainer]:
    """The same over another Trainer class, such as TRL's SFTTrainer or SentenceTransformerTrainer.

    The class keeps its data handling and (with `task_weight`) its own loss. A loss that runs the student once shares
    that forward; one that runs it more often (a sentence transformer's, once per column) needs a Distiller with
    `student_inputs`, which says what to distil on, and costs one forward more.
    """
    check_base(base)
    return type(f"Distillation{base.__name__}", (DistillationMixin, base), {"__doc__": DistillationMixin.__doc__})


def _with_loss_first(loss: Tensor, outputs: Any) -> Any:
    """Outputs as the evaluation of a Trainer takes them: a mapping, or a tuple whose first entry is a loss."""
    if isinstance(outputs, Mapping):
        return outputs
    parts = outputs if isinstance(outputs, tuple | list) else (outputs,)
    has_loss = len(parts) > 0 and isinstance(parts[0], Tensor) and parts[0].ndim == 0
    return tuple(parts) if has_loss else (loss, *parts)
