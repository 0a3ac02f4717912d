"""Distiller: two models (or one and a cache), pairs of features and losses, as one module from a batch to a loss.

    distiller = Distiller(student, teacher, pairs={"encoder.layer.1": "encoder.layer.5"}, loss="gssf")
    print(distiller.plan(batch))       # builds projectors and metrics from real shapes; before the optimizer
    losses = distiller(batch)          # {"loss": ..., one entry per term}; losses["loss"].backward()

Promises: the student is not edited and is `distiller.student`, to be saved as it is; projectors and metrics are
parameters of the distiller beside it; the teacher is in no state dict. Both models carry hooks during the
distiller's own forwards only: an error, `remove()` or the end of the distiller leave nothing on them. Losses run in
float32 or better, outside autocast. Under DDP wrap the distiller, not the student: its forward returns losses alone,
so gradients of all parts are synchronised, and relational losses see the batch of all processes.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from gssf_plug.distillation.checkpoint import load_parts, save_parts
from gssf_plug.distillation.losses.short_names import Loss
from gssf_plug.distillation.options import (
    Pairs,
    check_one_forward,
    checked_projector,
    checked_task_weight,
    get_task_loss,
    listed,
    make_teacher,
    resolve_pairs,
)
from gssf_plug.distillation.plan import Check, Plan, check_still, check_terms, untouched
from gssf_plug.distillation.taps import Feature, FeatureTaps, Tap
from gssf_plug.distillation.teacher import PREFIX, Teacher, TeacherInputs, argument_names, call, select_inputs
from gssf_plug.distillation.terms import Term, name_pairs
from gssf_plug.errors import ArgumentError
from gssf_plug.metric import GSSFMetric

__all__ = ["Distiller"]


class Distiller(nn.Module):
    """From a batch to a distillation loss.

    Args:
        student: the model to train; any module.
        teacher: a model, a `TeacherModel`, which has more options, or a `TeacherCache`, with which no teacher is
            loaded.
        pairs: which feature of the student is compared with which of the teacher: {student path: teacher path}, a list
            of pairs of paths or `Tap` objects, or a rule: "last" (the last stacked layers) or "uniform" (layers at
            equal distances).
        loss: short name, loss object, or a list of them, of which every pair gets all. A name makes losses of its own
            for each pair; a loss object with parameters serves one pair.
        weight: factor of the loss, or one for each loss of the list; default 1.
        projector: "auto" (default) puts a Linear before losses that need equal widths, where the widths differ; None
            never does; a module from the student's width to the teacher's serves a single pair. The losses of a pair
            share its projector.
        task_weight: factor of the student's own loss, `outputs.loss`, for which the batch must hold labels; 0 (default)
            leaves it out.
        student_inputs: function from a batch to the student's inputs; None (default) takes the columns that its forward
            names. With it `run` may run the student as often as it likes; features are then read in one forward more.
        teacher_inputs: how the teacher's inputs are made of a batch, see `TeacherModel`. None (default) takes the
            columns "teacher_*" where there are any (another tokenizer, image size or modality), else those of the
            student.
        teacher_dtype: data type that the teacher is brought to, such as torch.bfloat16; None (default) leaves it.
        teacher_device: device of the teacher; None (default) takes the student's.

    Raises:
        ArgumentError: a path matches nothing or more than one module, a loss is unknown, or the teacher shares weights
            with the student; at the first batch: no loss can compare the shapes of two features.

    Example:
        >>> student, teacher = nn.Sequential(nn.Linear(4, 6)), nn.Sequential(nn.Linear(4, 8))
        >>> distiller = Distiller(student, teacher, pairs={"0": "0"}, loss="mse")
        >>> batch = torch.randn(5, 4)
        >>> distiller.plan(batch).parameters  # a Linear from 6 to 8 channels
        56
        >>> sorted(distiller(batch))
        ['0', 'loss']
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | Teacher,
        pairs: Pairs,
        loss: Loss | Sequence[Loss] = "gssf",
        weight: float | Sequence[float] = 1.0,
        projector: str | nn.Module | None = "auto",
        *,
        task_weight: float = 0.0,
        student_inputs: Callable[[Any], Any] | None = None,
        teacher_inputs: TeacherInputs = None,
        teacher_dtype: torch.dtype | None = None,
        teacher_device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.task_weight = checked_task_weight(student, student_inputs, task_weight)
        self.student = student
        self._teacher = make_teacher(student, teacher, teacher_inputs, teacher_dtype, teacher_device)
        pairs = resolve_pairs(student, pairs, self._teacher.layers, self._teacher.find)
        losses, weights = listed(loss, weight)
        named = zip(name_pairs(pairs), pairs, strict=True)
        self.terms = [Term(name, pair, losses, weights) for name, pair in named]
        self._student_inputs = student_inputs
        self._projector = checked_projector(projector, len(self.terms))
        self._taps = FeatureTaps(student, {term.name: term.pair[0] for term in self.terms}, attach=False)
        self._teacher.watch({term.name: term.pair[1] for term in self.terms})
        self.projectors, self.losses = nn.ModuleList(), nn.ModuleList()
        self._plan: Plan | None = None

    def __del__(self) -> None:
        """A compiled student keeps its hooks between forwards; they go with the distiller."""
        with suppress(AttributeError, TypeError):  # half-built, or at the end of Python
            self.remove()

    def remove(self) -> None:
        """Take every hook off both models now. The next forward puts them back."""
        self._taps.remove()
        release = getattr(self._teacher, "release", None)
        if release is not None:
            release()

    @property
    def pairs(self) -> list[tuple[Tap, Tap]]:
        """Where student and teacher are read, each on one module."""
        return [term.pair for term in self.terms]

    @property
    def teacher(self) -> Teacher:
        """Where teacher features come from."""
        return self._teacher

    @property
    def planned(self) -> bool:
        """Whether projectors and losses are built."""
        return self._plan is not None

    @property
    def relational(self) -> bool:
        """Whether any loss compares examples with one another, so that gradient accumulation is not the large batch."""
        return any(loss.relational for term in self.terms for loss in term.losses)

    def metrics(self) -> dict[str, GSSFMetric]:
        """The metrics that were learned, by term; ship one with the student by `save_pretrained`."""
        named = [(name, loss) for term in self.terms for name, loss in zip(term.names, term.losses, strict=True)]
        return {name: m for name, loss in named for m in loss.modules() if isinstance(m, GSSFMetric)}

    def term_names(self) -> list[str]:
        """Names of the terms, all different.

        The student's path, or what is read on both sides where several pairs share it (`image_embeds<-image_embeds`);
        behind it the loss, where a pair has several.
        """
        return [name for term in self.terms for name in term.names]

    def weights(self) -> dict[str, float]:
        """The weight of each term in the loss, with that of "task" where it is not 0."""
        named = {name: w for term in self.terms for name, w in zip(term.names, term.weights, strict=True)}
        return named | ({"task": self.task_weight} if self.task_weight else {})

    def plan(self, batch: Any) -> Plan:
        """Run both models once on `batch`, build what they need, and say what will be done.

        Call it before the optimizer is made: projectors and metrics are parameters. Later calls build nothing.

        Raises:
            ArgumentError: two features cannot be compared.
        """
        was_training = self.training
        with torch.no_grad():
            self.eval()
            try:
                ours, theirs, _ = self._read(batch, None)
            finally:
                self.train(was_training)
        if not self.planned:
            self._build(ours, theirs)
        with torch.no_grad():
            self._compare(ours, theirs)
        rows = [row for term in self.terms for row in term.describe(ours[term.name], theirs[term.name])]
        self._plan = Plan(tuple(rows), sum(p.numel() for p in self.student.parameters()))
        return self._plan

    def check(self, batch: Any) -> Check:
        """Prove on `batch` that every term reaches the student and that the teacher does not move.

        Nothing is left behind: no gradients, buffers and random state as before.

        Raises:
            ArgumentError: the gradient of a term does not reach the student, or the teacher gives other features the
                second time.
        """
        self._require_plan()
        with untouched(self):
            first = self._teacher.features(batch, self._device())
            ours, theirs, _ = self._read(batch, None)
            check_still(first, theirs, {term.name: term.pair[1].path for term in self.terms})
            compared = {name: (ours[t.name], theirs[t.name]) for t in self.terms for name in t.names}
            trained = [p for p in self.student.parameters() if p.requires_grad]
            return check_terms(self._compare(ours, theirs), compared, trained)

    def forward(
        self, batch: Any, *, run: Callable[[nn.Module, Any], Any] | None = None, return_outputs: bool = False
    ) -> Any:
        """The losses of a batch.

        Args:
            batch: mapping of columns, of which student and teacher each get those that their forward names, or a
                tensor.
            run: function (student, batch) -> outputs that runs the student; None (default) calls it with its columns.
            return_outputs: True also returns the student's outputs. Default False.

        Returns:
            {"loss": weighted sum, name of a term: its loss without weight, ...}, with "task" where `task_weight` is not
            0. With `return_outputs` a pair of that and the outputs.
        """
        self._require_plan()
        ours, theirs, outputs = self._read(batch, run)
        losses = self._compare(ours, theirs)
        if self.task_weight:
            losses["task"] = get_task_loss(outputs)
        weights = self.weights()
        total = torch.stack([weights[name] * value for name, value in losses.items()]).sum()
        losses = {"loss": total, **losses}
        return (losses, outputs) if return_outputs else losses

    def save_parts(self, folder: str | os.PathLike[str]) -> None:
        """Write projectors and losses (with their metrics), not the student, into `folder`."""
        self._require_plan()
        save_parts(self._parts(), self._config(), folder)

    def load_parts(self, folder: str | os.PathLike[str]) -> None:
        """Read what `save_parts` wrote, strictly, after `plan`.

        Raises:
            CheckpointError: the parts are missing, damaged, or saved from other pairs or losses.
        """
        self._require_plan()
        load_parts(self._parts(), self._config(), folder, self._device())

    def foreign_columns(self, batch: Iterable[str]) -> set[str]:
        """Columns of a batch that are the teacher's alone."""
        if self._student_inputs:  # the batch is of a form of its own, which others understand
            return {name for name in batch if name.startswith(PREFIX)}
        return set(self._teacher.columns(batch)) - argument_names(self.student)

    def _read(
        self, batch: Any, run: Callable[[nn.Module, Any], Any] | None
    ) -> tuple[dict[str, Feature], dict[str, Feature], Any]:
        """Features of student and teacher by pair, and the student's outputs; an error of a tap says of which pair."""
        try:
            return self._features(batch, run)
        except ArgumentError as error:
            for ours, theirs in (term.pair for term in self.terms if term.name == error.tap):
                error.args = (f"{error} It is read for the pair {ours} <- {theirs}.",)
            raise

    def _features(
        self, batch: Any, run: Callable[[nn.Module, Any], Any] | None
    ) -> tuple[dict[str, Feature], dict[str, Feature], Any]:
        theirs = self._teacher.features(batch, self._device())
        apart = run is not None and self._student_inputs is not None
        outputs = run(self.student, batch) if run and apart else None
        before = self._taps.forwards
        with self._taps.recording():
            if run and not apart:
                outputs = run(self.student, batch)
                check_one_forward(self._taps.forwards - before)
            else:
                own = self._run(batch)
                outputs = outputs if apart else own
            ours = self._taps.features
        self._taps.clear()
        return ours, theirs, outputs

    def _run(self, batch: Any) -> Any:
        chosen = self._student_inputs(batch) if self._student_inputs else select_inputs(self.student, batch)
        return call(self.student, chosen, "student")

    def _compare(self, ours: dict[str, Feature], theirs: dict[str, Feature]) -> dict[str, Tensor]:
        values: dict[str, Tensor] = {}
        for term in self.terms:
            values |= term.compare(ours[term.name], theirs[term.name])
        return values

    def _build(self, ours: dict[str, Feature], theirs: dict[str, Feature]) -> None:
        """Projectors and losses anew, also after a plan that failed half-way."""
        losses: list[nn.Module] = []
        for term in self.terms:
            term.build(ours[term.name], theirs[term.name], self._projector, losses)
            losses += term.losses
        self.losses = nn.ModuleList(losses)
        self.projectors = nn.ModuleList(term.projector for term in self.terms)

    def _parts(self) -> nn.Module:
        return nn.ModuleDict({"projectors": self.projectors, "losses": self.losses})

    def _config(self) -> dict[str, Any]:
        metrics = [m.file_config() for loss in self.losses for m in loss.modules() if isinstance(m, GSSFMetric)]
        return {
            "pairs": [[ours.path, theirs.path] for ours, theirs in self.pairs],
            "losses": [type(loss).__name__ for loss in self.losses],
            "metrics": metrics,
        }

    def _device(self) -> torch.device:
        return next(self.student.parameters()).device

    def _require_plan(self) -> None:
        if not self.planned:
            raise ArgumentError(
                "batch",
                "come after distiller.plan(batch)",
                "an unplanned distiller",
                "Call plan(batch) once before the optimizer is made, or its projectors and metrics would not train.",
            )
