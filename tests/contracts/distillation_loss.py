"""What every distillation loss must hold, inherited by one test class per loss (tests/distillation/losses/).

A subclass makes its loss, perturbed away from its neutral start, and writes its formula once more in float64, by the
shortest road that shares no code with it.
"""

from typing import ClassVar

import pytest
import torch
from torch import Tensor

from gssf_plug.distillation.losses import DistillationLoss
from gssf_plug.errors import ArgumentError

BATCH, TOKENS, WIDTH = 6, 5, 4


def perturbed(module):
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))
    return module


def pooled(tokens, keep):
    return torch.stack([row[valid].mean(0) for row, valid in zip(tokens, keep, strict=True)])


class DistillationLossContract:
    student_width: ClassVar[int] = WIDTH
    teacher_width: ClassVar[int] = WIDTH
    takes_vectors: ClassVar[bool] = True
    zero_for_equals: ClassVar[bool] = True  # a student that equals its teacher has loss 0 at the neutral start

    def make(self) -> DistillationLoss:
        raise NotImplementedError

    def reference(self, loss: DistillationLoss, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        """The loss in float64; vectors (N, D), or tokens (N, T, D) with a mask."""
        raise NotImplementedError

    def loss(self) -> DistillationLoss:
        return perturbed(self.make()).double().eval()

    def vectors(self) -> tuple[Tensor, Tensor]:
        return (
            torch.randn(BATCH, self.student_width, dtype=torch.float64),
            torch.randn(BATCH, self.teacher_width, dtype=torch.float64),
        )

    def tokens(self) -> tuple[Tensor, Tensor, Tensor]:
        student = torch.randn(BATCH, TOKENS, self.student_width, dtype=torch.float64)
        teacher = torch.randn(BATCH, TOKENS, self.teacher_width, dtype=torch.float64)
        mask = torch.arange(TOKENS) < torch.tensor([5, 3, 1, 4, 2, 5])[:, None]
        return student, teacher, mask

    def cases(self) -> list[tuple[Tensor, Tensor, Tensor | None]]:
        student, teacher, mask = self.tokens()
        cases: list[tuple[Tensor, Tensor, Tensor | None]] = [(student, teacher, mask), (student, teacher, None)]
        return [(*self.vectors(), None), *cases] if self.takes_vectors else cases

    def test_equals_the_slow_reference(self) -> None:
        loss = self.loss()
        for student, teacher, mask in self.cases():
            if loss.vectors and student.ndim == 3:
                keep = torch.ones(BATCH, TOKENS, dtype=torch.bool) if mask is None else mask
                expected = self.reference(loss, pooled(student, keep), pooled(teacher, keep), None)
            else:
                expected = self.reference(loss, student, teacher, mask)
            torch.testing.assert_close(loss(student, teacher, mask), expected.double())

    def test_gradcheck(self) -> None:
        loss = self.loss()
        for student, teacher, mask in self.cases():
            inputs = student.requires_grad_()
            assert torch.autograd.gradcheck(lambda x, t=teacher, m=mask: loss(x, t, m), inputs)

    def test_the_teacher_gets_no_gradient(self) -> None:
        student, teacher, mask = self.cases()[0]
        student.requires_grad_()
        teacher.requires_grad_()
        self.loss()(student, teacher, mask).backward()
        assert teacher.grad is None
        assert student.grad is not None
        assert student.grad.abs().max() > 0

    def test_does_not_depend_on_the_order_of_examples(self) -> None:
        loss, order = self.loss(), torch.randperm(BATCH)
        student, teacher, mask = self.cases()[-2]
        shuffled = loss(student[order], teacher[order], None if mask is None else mask[order])
        torch.testing.assert_close(shuffled, loss(student, teacher, mask))

    def test_depends_on_who_belongs_to_whom(self) -> None:
        student, teacher, _ = self.cases()[0]
        assert not torch.isclose(self.loss()(student, teacher), self.loss()(student, teacher.roll(1, 0)))

    @pytest.mark.parametrize("rubbish", [1e6, float("nan"), float("inf")])
    def test_padding_never_counts(self, rubbish: float) -> None:
        student, teacher, mask = self.tokens()
        loss = self.loss()
        clean = loss(student, teacher, mask)
        spoilt_student = torch.where(mask[..., None], student, rubbish).requires_grad_()
        spoilt = loss(spoilt_student, torch.where(mask[..., None], teacher, rubbish), mask)
        torch.testing.assert_close(spoilt, clean)
        spoilt.backward()
        assert spoilt_student.grad is not None
        assert spoilt_student.grad.isfinite().all()
        assert spoilt_student.grad[~mask].eq(0).all()

    def test_a_learned_student_has_no_loss(self) -> None:
        if not self.zero_for_equals:
            pytest.skip("its least value is not 0")
        student, _, _ = self.cases()[0]
        loss = self.make().double().eval()
        assert float(loss(student, student.clone()).detach()) == pytest.approx(0, abs=1e-9)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_sums_in_float32(self, dtype: torch.dtype) -> None:
        student, teacher, mask = self.cases()[0]
        student, teacher = student.to(dtype), teacher.to(dtype)
        loss = perturbed(self.make()).eval()
        half = loss(student, teacher, mask)
        assert half.dtype == torch.float32
        torch.testing.assert_close(half, loss(student.float(), teacher.float(), mask))

    def test_training_lowers_it(self) -> None:
        student, teacher, mask = self.cases()[0]
        loss = self.make().double().eval()
        moved = student.requires_grad_()
        optimizer = torch.optim.Adam([moved, *loss.parameters()], lr=0.02)
        before = float(loss(moved, teacher, mask).detach())
        for _ in range(60):
            optimizer.zero_grad()
            loss(moved, teacher, mask).backward()
            optimizer.step()
        assert float(loss(moved, teacher, mask).detach()) < before - 1e-3 * abs(before)

    def test_an_example_alone(self) -> None:
        """Per-example losses are means over examples; relational ones refuse a batch of one."""
        loss = self.loss()
        student, teacher, mask = self.cases()[0]
        one = lambda i: (student[i : i + 1], teacher[i : i + 1], None if mask is None else mask[i : i + 1])  # noqa: E731
        if not loss.relational:
            torch.testing.assert_close(
                torch.stack([loss(*one(i)) for i in range(BATCH)]).mean(), loss(student, teacher, mask)
            )
            return
        with pytest.raises(ArgumentError, match=r"`student` must hold at least two examples .* but got 1"):
            loss(*one(0))

    @pytest.mark.bad_input
    def test_bad_input_is_named(self) -> None:
        student, teacher, mask = self.tokens()
        loss = self.loss()
        with pytest.raises(ArgumentError, match=r"`teacher` must have the student's batch size 6, but got 5"):
            loss(student, teacher[:5], mask)
        with pytest.raises(ArgumentError, match=r"`student` must be vectors \(N, D\) or tokens"):
            loss(student[0, 0], teacher[0, 0])
        with pytest.raises(ArgumentError, match=r"`mask` must have shape \(6, 5\)"):
            loss(student, teacher, mask[:, :3])
        if loss.same_width:
            with pytest.raises(ArgumentError, match=r"`student` must have the teacher's width 4"):
                loss(torch.cat([student, student], -1), teacher, mask)
        if not loss.vectors:
            with pytest.raises(ArgumentError, match=r"`teacher` must have as many tokens as the student"):
                loss(student, teacher[:, :3], None)
