"""Distiller: two models (or one and a cache), pairs of features and losses, as one module from a batch to a loss.

    distiller = Distiller(student, teacher, pairs={"encoder.layer.1": "encoder.layer.5"}, loss="gssf")
    print(distiller.plan(batch))       # builds projectors and metrics from real shapes; before the optimizer
    losses = distiller(batch)          # {"loss": ..., one entry per term}; losses["loss"].backward()

Promises: the student is not edited and is `distiller.student`, to be saved as it is; projectors and metrics are
parameters of the distiller beside it; the teacher is in no state dict. Losses run in float32 or better, outside
autocast. Under DDP wrap the distiller, not the student: its forward returns the losses alone, so gradients of all parts
are synchronised, and relational losses see the batch of all processes.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from gssf_plug.distillation.checkpoint import load_parts, save_parts
from gssf_plug.distillation.losses.distillation_loss import FeatureLoss
from gssf_plug.distillation.losses.short_names import loss_by_name
from gssf_plug.distillation.options import (
    Loss,
    Pairs,
    check_one_forward,
    checked_projector,
    listed,
    resolve_pairs,
    task_loss,
    teacher_of,
)
from gssf_plug.distillation.plan import Check, Plan, PlanRow, check_distiller
from gssf_plug.distillation.taps import Feature, FeatureTaps
from gssf_plug.distillation.teacher import PREFIX, Teacher, TeacherInputs, argument_names, call, select_inputs
from gssf_plug.distillation.terms import compare, projector_for
from gssf_plug.errors import ArgumentError
from gssf_plug.metric import GSSFMetric

__all__ = ["Distiller"]


class Distiller(nn.Module):
    """From a batch to a distillation loss.

    Args:
        student: the model to train; any module.
        teacher: a model; a `TeacherModel`, which has more options; or a `TeacherCache`: then no teacher is loaded.
        pairs: {student path: teacher path}, a list of pairs of paths or `Tap` objects, or a rule: "last", "uniform".
        loss: a short name, a loss object, or a list of them: every pair gets every one. A loss object with parameters
            serves one pair; by name each pair gets its own.
        weight: of the loss, or one per loss of the list; default 1.
        projector: "auto" (a Linear where a loss needs equal widths and they differ), None (never), or a module from the
            student's width to the teacher's, for a single pair. The losses of a pair share it.
        task_weight: of the student's own loss (`outputs.loss`, the batch must hold labels); default 0.
        student_inputs: a function from a batch to the student's inputs; default the columns that its forward takes.
            With it `run` may run the student as often as it likes; features are then read in one forward more.
        teacher_inputs: the teacher's inputs out of a batch, see `TeacherModel`. Default: the columns "teacher_*" where
            there are any (another tokenizer, another image size, another modality), else the same as the student's.
        teacher_dtype: such as torch.bfloat16; default as it is.
        teacher_device: default the student's.

    Raises:
        ArgumentError: paths that match nothing or not one-to-one, an unknown loss, a teacher that shares weights with
            the student; at the first batch: shapes that no loss can compare.

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
        source = teacher_of(student, teacher, teacher_inputs, teacher_dtype, teacher_device)
        self.student = student
        self._teacher = source
        self.pairs = resolve_pairs(student, pairs, source.layers, source.find)
        self.task_weight = task_weight
        self._student_inputs = student_inputs
        self._losses, self._weights = listed(loss, weight)
        self._projector = checked_projector(projector, len(self.pairs))
        self._taps = FeatureTaps(student, {str(i): ours for i, (ours, _) in enumerate(self.pairs)})
        source.watch({str(i): theirs for i, (_, theirs) in enumerate(self.pairs)})
        self.projectors, self.losses = nn.ModuleList(), nn.ModuleList()
        self._plan: Plan | None = None

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
        return any(isinstance(loss, FeatureLoss) and loss.relational for loss in self.losses)

    def metrics(self) -> dict[str, GSSFMetric]:
        """The metrics that were learned, by term; ship one with the student by `save_pretrained`."""
        named = zip(self.term_names(), self.losses, strict=True)
        return {name: m for name, loss in named for m in loss.modules() if isinstance(m, GSSFMetric)}

    def term_names(self) -> list[str]:
        """Names of the terms: the student's path, and the loss where a pair has several."""
        several = len(self._losses) > 1
        paths = [ours.path or "output" for ours, _ in self.pairs]
        names = [
            path if paths.count(path) == 1 else f"{path}<-{t.path}"
            for path, (_, t) in zip(paths, self.pairs, strict=True)
        ]
        return [f"{name}:{_name_of(loss)}" if several else name for name in names for loss in self._losses]

    def plan(self, batch: Any) -> Plan:
        """Run both models once on `batch`, build what they need, and say what will be done.

        Call it before the optimizer is made: projectors and metrics are parameters. Later calls build nothing.

        Raises:
            ArgumentError: the features cannot be compared.
        """
        was_training = self.training
        with torch.no_grad():
            self.eval()
            try:
                ours, theirs, _ = self._read(batch, None)
            finally:
                self.train(was_training)
        if not self.planned:
            self.projectors, self.losses = nn.ModuleList(), nn.ModuleList()  # also after a plan that failed half-way
            for pair in range(len(self.pairs)):
                student, teacher = ours[str(pair)].tensor, theirs[str(pair)].tensor
                self._build(pair, student, _channels(student), _channels(teacher))
        with torch.no_grad():
            self._compare(ours, theirs)
        rows = [
            self._row(term, pair, ours[str(pair)], theirs[str(pair)]) for term, (pair, _) in enumerate(self._terms())
        ]
        self._plan = Plan(tuple(rows), sum(p.numel() for p in self.student.parameters()))
        return self._plan

    def check(self, batch: Any) -> Check:
        """Prove on `batch` that every term reaches the student and that the teacher does not move.

        Nothing is left behind: no gradients, buffers and random state as before.

        Raises:
            ArgumentError: a term whose gradient does not reach the student, or a teacher that moved.
        """
        self._require_plan()
        return check_distiller(self, batch)

    def forward(
        self, batch: Any, *, run: Callable[[nn.Module, Any], Any] | None = None, return_outputs: bool = False
    ) -> Any:
        """The losses of a batch.

        Args:
            batch: a mapping of columns (student and teacher each get those that their forward takes), or a tensor.
            run: how the student is run, (student, batch) -> outputs; default the student on the columns it takes.
            return_outputs: also return the student's outputs.

        Returns:
            {"loss": weighted sum, term: unweighted loss, ...}, with "task" where `task_weight` is not 0; with
            `return_outputs` a pair of that and the outputs.
        """
        self._require_plan()
        ours, theirs, outputs = self._read(batch, run)
        losses = self._compare(ours, theirs)
        weights = [weight for _ in self.pairs for weight in self._weights]
        total = torch.stack([w * value for w, value in zip(weights, losses.values(), strict=True)]).sum()
        if self.task_weight:
            losses["task"] = task_loss(outputs)
            total = total + self.task_weight * losses["task"]
        losses = {"loss": total, **losses}
        return (losses, outputs) if return_outputs else losses

    def save_parts(self, folder: str | os.PathLike[str]) -> None:
        """Write projectors and losses (with their metrics), not the student, into `folder`."""
        self._require_plan()
        save_parts(self, folder)

    def load_parts(self, folder: str | os.PathLike[str]) -> None:
        """Read what `save_parts` wrote, strictly, after `plan`.

        Raises:
            CheckpointError: missing, damaged, or saved from other pairs or losses.
        """
        self._require_plan()
        load_parts(self, folder)

    def foreign_columns(self, batch: Iterable[str]) -> set[str]:
        """Columns of a batch that are the teacher's alone."""
        if self._student_inputs:  # the batch is of a form of its own, which others understand
            return {name for name in batch if name.startswith(PREFIX)}
        return set(self._teacher.columns(batch)) - argument_names(self.student)

    def _terms(self) -> list[tuple[int, Loss]]:
        return [(pair, loss) for pair in range(len(self.pairs)) for loss in self._losses]

    def _read(
        self, batch: Any, run: Callable[[nn.Module, Any], Any] | None
    ) -> tuple[dict[str, Feature], dict[str, Feature], Any]:
        theirs = self._teacher.features(batch, next(self.student.parameters()).device)
        before = self._taps.forwards
        outputs = run(self.student, batch) if run else self._run(batch)
        if run and self._student_inputs:
            self._run(batch)
        else:
            check_one_forward(self._taps.forwards - before)
        ours = self._taps.features
        self._taps.clear()
        return ours, theirs, outputs

    def _run(self, batch: Any) -> Any:
        chosen = self._student_inputs(batch) if self._student_inputs else select_inputs(self.student, batch)
        return call(self.student, chosen)

    def _compare(self, ours: dict[str, Feature], theirs: dict[str, Feature]) -> dict[str, Tensor]:
        values: list[Tensor] = []
        for pair, projector in enumerate(self.projectors):
            values += compare(ours[str(pair)], theirs[str(pair)], projector, self._losses_of(pair))
        return dict(zip(self.term_names(), values, strict=True))

    def _losses_of(self, pair: int) -> list[FeatureLoss]:
        count = len(self._losses)
        return [cast(FeatureLoss, loss) for loss in self.losses[pair * count : (pair + 1) * count]]

    def _build(self, pair: int, like: Tensor, student_dim: int, teacher_dim: int) -> None:
        for loss in self._losses:
            built = loss_by_name(loss, student_dim, teacher_dim) if isinstance(loss, str) else loss
            if any(built is other for other in self.losses) and next(built.parameters(), None) is not None:
                raise ArgumentError(
                    "loss",
                    "have no parameters to serve several pairs",
                    type(built).__name__,
                    "Give its short name, or one Distiller per pair.",
                )
            self.losses.append(built.to(like.device))
        projector = projector_for(self._losses_of(pair), self._projector, student_dim, teacher_dim)
        self.projectors.append(projector.to(like.device))

    def _row(self, term: int, pair: int, student: Feature, teacher: Feature) -> PlanRow:
        projector, loss = self.projectors[pair], self.losses[term]
        users = [number for number, other in enumerate(self._losses_of(pair)) if other.same_width]
        place = term % len(self._losses)
        if isinstance(projector, nn.Identity) or place not in users:
            projector, kind = nn.Identity(), "none"
        else:
            kind = type(projector).__name__ if place == users[0] else "the same"
        counted = (loss,) if kind == "the same" else (projector, loss)
        return PlanRow(
            student=self.pairs[pair][0].path,
            teacher=self.pairs[pair][1].path,
            student_shape=tuple(student.tensor.shape),
            teacher_shape=tuple(teacher.tensor.shape),
            loss=type(loss).__name__,
            weight=self._weights[place],
            projector=kind,
            parameters=sum(p.numel() for part in counted for p in part.parameters()),
        )

    def _require_plan(self) -> None:
        if not self.planned:
            raise ArgumentError(
                "batch",
                "come after distiller.plan(batch)",
                "an unplanned distiller",
                "Call plan(batch) once before the optimizer is made, or its projectors and metrics would not train.",
            )


def _channels(tensor: Tensor) -> int:
    return tensor.shape[1] if tensor.ndim == 4 else tensor.shape[-1]


def _name_of(loss: Loss) -> str:
    return loss if isinstance(loss, str) else type(loss).__name__.lower()
