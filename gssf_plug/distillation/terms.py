"""Term: one pair of features with its losses and the one projector that they share; its values and its lines of a plan.

A projector serves the losses that compare channel by channel (`same_width`); the others see the student's own features.
Each form of the features (tokens or one vector, projected or not) is made once, however many losses ask for it.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache

import torch
from torch import Tensor, nn

from gssf_plug.distillation.losses.distillation_loss import DistillationLoss
from gssf_plug.distillation.losses.short_names import Loss, loss_by_name
from gssf_plug.distillation.plan import PlanRow
from gssf_plug.distillation.shape_matching import align, as_vector
from gssf_plug.distillation.taps import Feature, Tap
from gssf_plug.errors import ArgumentError

__all__ = ["Term", "name_pairs"]

RESERVED = ("loss", "task")  # entries of what a Distiller returns that are no term's


class Term:
    """What is compared at one pair of places, how, and with what weight.

    Args:
        name: name of the pair, which no other pair of the Distiller has.
        pair: the places at which the student and the teacher are read.
        losses: short names or loss objects, all of which the pair gets.
        weights: factor of each of these losses.

    Attributes:
        names: keys of its losses in what a Distiller returns: the pair's name, with the loss behind it where several
            losses are compared.
        losses: the loss modules, after `build`.
        projector: map from the student's width to the teacher's, or the identity; there after `build`.
    """

    def __init__(self, name: str, pair: tuple[Tap, Tap], losses: Sequence[Loss], weights: Sequence[float]) -> None:
        self.name = name
        self.pair = pair
        self.weights = list(weights)
        kinds = [loss if isinstance(loss, str) else type(loss).__name__.lower() for loss in losses]
        self.names = [f"{name}:{kind}" for kind in _numbered(kinds)] if len(kinds) > 1 else [name]
        self.losses: list[DistillationLoss] = []
        self.projector: nn.Module = nn.Identity()
        self._asked = list(losses)

    def build(
        self,
        student: Feature,
        teacher: Feature,
        projector: str | nn.Module | None,
        taken: Iterable[nn.Module],
    ) -> None:
        """Make losses and projector for features as wide as these.

        Args:
            student: feature that was read at the student's place from a first batch.
            teacher: feature that was read at the teacher's place from the same batch.
            projector: "auto", None or a module, as the Distiller was given it.
            taken: losses that serve other terms.

        Raises:
            ArgumentError: a loss with parameters serves another term already, or no loss would use the projector that
                was given.
        """
        widths, device = (_width(student.tensor), _width(teacher.tensor)), student.tensor.device
        self.losses = [loss_by_name(loss, *widths) if isinstance(loss, str) else loss for loss in self._asked]
        others = {id(loss) for loss in taken}
        for number, loss in enumerate(self.losses):
            twice = id(loss) in others or any(loss is before for before in self.losses[:number])
            if twice and next(loss.parameters(), None) is not None:
                raise ArgumentError(
                    "loss",
                    "have no parameters to serve several pairs",
                    type(loss).__name__,
                    "Give its short name, or one Distiller per pair.",
                )
            loss.to(device)
        self.projector = self._make_projector(projector, *widths).to(device)

    def compare(self, student: Feature, teacher: Feature) -> dict[str, Tensor]:
        """The value of each loss by its name, without its weight, in float32 or better."""

        @cache
        def form(vectors: bool) -> tuple[Tensor, Tensor, Tensor | None]:
            x, y, mask = (as_vector(student), as_vector(teacher), None) if vectors else align(student, teacher)
            return x.to(torch.promote_types(x.dtype, torch.float32)), y, mask

        @cache
        def projected(vectors: bool) -> Tensor:
            result: Tensor = self.projector(form(vectors)[0])
            return result

        values = {}
        with torch.autocast(student.tensor.device.type, enabled=False):
            for name, loss in zip(self.names, self.losses, strict=True):
                own, theirs, mask = form(loss.vectors)
                values[name] = loss(projected(loss.vectors) if loss.same_width else own, theirs, mask)
        return values

    def describe(self, student: Feature, teacher: Feature) -> list[PlanRow]:
        """A line of the plan for each loss; the parameters of the projector stand in the first that uses it."""
        users = [number for number, loss in enumerate(self.losses) if loss.same_width]
        rows = []
        for number, loss in enumerate(self.losses):
            kind, counted = "none", [loss]
            if number in users and not isinstance(self.projector, nn.Identity):
                first = number == users[0]
                kind = type(self.projector).__name__ if first else "the same"
                counted = [self.projector, loss] if first else [loss]  # type: ignore[list-item]
            rows.append(
                PlanRow(
                    student=self.pair[0].path,
                    teacher=self.pair[1].path,
                    student_shape=tuple(student.tensor.shape),
                    teacher_shape=tuple(teacher.tensor.shape),
                    loss=type(loss).__name__,
                    weight=self.weights[number],
                    projector=kind,
                    parameters=sum(p.numel() for part in counted for p in part.parameters()),
                    name=self.names[number],
                    student_tap=str(self.pair[0]),
                    teacher_tap=str(self.pair[1]),
                )
            )
        return rows

    def _make_projector(self, asked: str | nn.Module | None, student_dim: int, teacher_dim: int) -> nn.Module:
        """The given one; a Linear where "auto" and widths differ; else the identity."""
        serves = any(loss.same_width for loss in self.losses)
        if isinstance(asked, nn.Module):
            if not serves:
                raise ArgumentError(
                    "projector",
                    "serve a loss that compares channel by channel",
                    f"{[type(loss).__name__ for loss in self.losses]}, which see the student's own features",
                    "Leave it out, or tap the student after a projection of its own.",
                )
            return asked
        if serves and asked == "auto" and student_dim != teacher_dim:
            return nn.Linear(student_dim, teacher_dim)
        return nn.Identity()


def name_pairs(pairs: Sequence[tuple[Tap, Tap]]) -> list[str]:
    """A name for each pair, all different: the student's path where that is enough, else what is read on both sides.

    >>> name_pairs([(Tap("", output="image_embeds"), Tap("")), (Tap("", output="text_embeds"), Tap(""))])
    ['image_embeds<-output', 'text_embeds<-output']
    """
    short = [ours.path or "output" for ours, _ in pairs]
    paths = [f"{name}<-{theirs.path}" for name, (_, theirs) in zip(short, pairs, strict=True)]
    whole = [f"{ours}<-{theirs}" for ours, theirs in pairs]
    chosen = []
    for options in zip(short, paths, whole, strict=True):
        # The shortest form that no other pair shares; the last one where all are shared.
        own = [o for o, every in zip(options, (short, paths, whole), strict=True) if every.count(o) == 1]
        chosen.append(next((name for name in own if name not in RESERVED and not name.endswith("<-")), options[-1]))
    return _numbered(chosen)


def _numbered(names: Sequence[str]) -> list[str]:
    """Equal names told apart: the second of them gets "#2"."""
    seen: Counter[str] = Counter()
    result = []
    for name in names:
        seen[name] += 1
        result.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return result


def _width(tensor: Tensor) -> int:
    return tensor.shape[1] if tensor.ndim == 4 else tensor.shape[-1]
