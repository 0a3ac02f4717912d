"""What every distillation loss shares: its checks, its dtype, what a mask leaves out, the three flags of a class."""

import pytest
import torch

from gssf_plug.distillation.losses import MSE, DistillationLoss, FeatureLoss, distillation_loss
from gssf_plug.distillation.losses.distillation_loss import mean_per_example, require_positive
from gssf_plug.errors import ArgumentError


class Seen(DistillationLoss):
    """Keeps what `compute` gets."""

    def compute(self, student, teacher, mask):
        self.given = student, teacher, mask
        return student.sum()


class Pooled(Seen):
    vectors = True


class Together(Seen):
    relational = True


class Alike(Seen):
    same_width = True


def test_the_old_name_of_the_class_works():
    assert FeatureLoss is DistillationLoss is distillation_loss.FeatureLoss
    assert issubclass(MSE, FeatureLoss)


@pytest.mark.parametrize(
    ("student", "teacher", "computed"),
    [
        (torch.bfloat16, torch.float16, torch.float32),
        (torch.float32, torch.bfloat16, torch.float32),
        (torch.float32, torch.float64, torch.float64),
    ],
)
def test_it_computes_in_float32_or_better_and_the_teacher_learns_nothing(student, teacher, computed):
    loss, x = Seen(), torch.randn(3, 4, dtype=student, requires_grad=True)
    y = torch.randn(3, 5, dtype=teacher, requires_grad=True)
    loss(x, y).backward()
    assert {one.dtype for one in loss.given[:2]} == {computed}
    assert x.grad is not None
    assert y.grad is None


def test_padding_is_zero_whatever_stood_there():
    x, mask = torch.randn(2, 3, 4), torch.tensor([[1, 1, 0], [1, 0, 0]])
    x[0, 2], x[1, 1] = float("nan"), float("inf")
    loss = Seen()
    loss(x, torch.randn(2, 3, 4), mask)
    student, teacher, kept = loss.given
    assert kept.dtype == torch.bool
    assert torch.equal(student[mask == 0], torch.zeros(3, 4))
    assert torch.equal(teacher[mask == 0], torch.zeros(3, 4))
    assert torch.equal(student[0, :2], x[0, :2])


def test_a_loss_of_vectors_averages_tokens_under_the_mask():
    x, mask = torch.randn(2, 3, 4), torch.tensor([[1, 1, 0], [1, 0, 0]])
    loss = Pooled()
    loss(x, torch.randn(2, 5), mask)
    torch.testing.assert_close(loss.given[0], torch.stack([x[0, :2].mean(0), x[1, 0]]))
    assert loss.given[2] is None


def test_the_mean_of_examples_that_have_any_token():
    values, mask = torch.randn(3, 4), torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]]).bool()
    rows = [values[0, :2].mean(), values[2].mean()]
    torch.testing.assert_close(mean_per_example(values, mask), sum(rows) / 2)
    torch.testing.assert_close(mean_per_example(values, None), values.mean())
    assert mean_per_example(values[:, 0], None) == values[:, 0].mean()
    assert mean_per_example(values, torch.zeros(3, 4).bool()) == 0


@pytest.mark.bad_input
def test_positive_numbers():
    require_positive("temperature", 0.07)
    for wrong in (0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ArgumentError, match="`temperature` must be a positive number, but got"):
            require_positive("temperature", wrong)


@pytest.mark.bad_input
class TestBadInput:
    def refuses(self, match, loss, *shapes, mask=None):
        with pytest.raises(ArgumentError, match=match):
            loss(*(torch.randn(shape) for shape in shapes), mask)

    def test_shapes(self):
        rule = r"must be vectors \(N, D\) or tokens \(N, T, D\), but got shape"
        self.refuses(f"`student` {rule}", Seen(), (4,), (4, 2))
        self.refuses(f"`teacher` {rule}", Seen(), (4, 2), (4, 2, 2, 2))
        self.refuses("`teacher` must have the student's batch size 4, but got 3", Seen(), (4, 2), (3, 2))
        self.refuses(r"`teacher` must have as many tokens as the student", Seen(), (4, 2, 3), (4, 5, 3))
        self.refuses("`student` must have the teacher's width 3 for Alike, but got 2", Alike(), (4, 2), (4, 3))
        wrong = torch.ones(4, 3)
        self.refuses(r"`mask` must have shape \(4, 2\), one value per token", Seen(), (4, 2, 3), (4, 2, 3), mask=wrong)

    def test_no_mask_stands_beside_vectors(self):
        self.refuses("`mask` must be None for vectors", Seen(), (4, 2), (4, 2), mask=torch.ones(4))

    @pytest.mark.parametrize(
        ("wrong", "got"),
        [
            (None, "NoneType"),
            ([[1.0, 2.0]], "list"),
            (torch.zeros(1, 2, dtype=torch.complex64), r"torch.complex64 of shape \(1, 2\)"),
            (torch.empty(1, 2, device="meta"), r"torch.float32 of shape \(1, 2\) on the meta device"),
            (torch.eye(1, 2).to_sparse(), "torch.float32 of layout torch.sparse_coo"),
        ],
    )
    def test_no_tensor_of_real_numbers(self, wrong, got):
        right = torch.randn(1, 2)
        with pytest.raises(ArgumentError, match=f"`student` must be a tensor of real numbers, but got {got}"):
            Seen()(wrong, right)
        with pytest.raises(ArgumentError, match=f"`teacher` must be a tensor of real numbers, but got {got}"):
            Seen()(right, wrong)
        if wrong is not None:
            with pytest.raises(ArgumentError, match=f"`mask` must be None or a tensor .* but got {got}"):
                Seen()(right, right, wrong)

    def test_too_few_examples(self):
        self.refuses("`student` must hold at least one example, but got an empty batch", Seen(), (0, 2), (0, 2))
        self.refuses("`student` must hold at least two examples for Together", Together(), (1, 2), (1, 2))
