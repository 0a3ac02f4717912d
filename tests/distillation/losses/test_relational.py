"""The classic relational losses, with and without a metric, against references by loops in float64."""

import pytest
import torch
from contracts.distillation_loss import DistillationLossContract

from gssf_plug import GSSFMetric
from gssf_plug.distillation.losses import CKA, CRD, PKT, RKD, SP
from gssf_plug.distillation.losses.relational import same_example
from gssf_plug.errors import ArgumentError


def inner(loss, student):
    """The student's matrix of inner products, entry by entry."""
    if getattr(loss, "metric", None) is None:
        return student @ student.T
    unit = student / student.norm(dim=1, keepdim=True)
    return unit @ loss.metric.matrix() @ unit.T


def cosine(x):
    unit = x / x.norm(dim=1, keepdim=True)
    return unit @ unit.T


class TestSP(DistillationLossContract):
    student_width = 8

    def make(self):
        return SP()

    def reference(self, loss, student, teacher, mask):
        total, ours, theirs = 0, inner(loss, student), teacher @ teacher.T
        for a, b in zip(ours, theirs, strict=True):
            total += ((a / a.norm() - b / b.norm()) ** 2).sum()
        return total / len(student) ** 2


class TestSPWithMetric(TestSP):
    zero_for_equals = False  # the metric normalises, the teacher's inner product does not

    def make(self):
        return SP(GSSFMetric(8, block_size=4))


class TestPKT(DistillationLossContract):
    student_width = 8

    def make(self):
        return PKT()

    def reference(self, loss, student, teacher, mask):
        p = (cosine(teacher) + 1) / 2
        q = ((cosine(student) if loss.metric is None else inner(loss, student)) + 1).clamp_min(2e-7) / 2
        p, q = p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True)
        return sum(p[i, j] * (p[i, j] / q[i, j]).log() for i in range(len(p)) for j in range(len(p))) / len(p) ** 2


class TestPKTWithMetric(TestPKT):
    def make(self):
        return PKT(GSSFMetric(8, block_size=4))


class TestRKD(DistillationLossContract):
    student_width = 8

    def make(self):
        return RKD()

    def reference(self, loss, student, teacher, mask):
        huber = torch.nn.functional.smooth_l1_loss
        (d_s, a_s), (d_t, a_t) = self.relations(student), self.relations(teacher)
        return 25 * huber(d_s, d_t) + 50 * huber(a_s, a_t)

    @staticmethod
    def relations(x):
        distance = torch.stack([torch.stack([(a - b).norm() for b in x]) for a in x])
        unit = torch.stack([torch.stack([(a - b) / (a - b).norm().clamp_min(1e-12) for a in x]) for b in x])
        return distance / distance[distance > 0].mean(), unit @ unit.mT

    def test_parts_can_be_left_out(self):
        student, teacher = self.vectors()
        whole = RKD()(student, teacher)
        parts = RKD(angle_weight=0)(student, teacher) + RKD(distance_weight=0)(student, teacher)
        torch.testing.assert_close(parts, whole)
        with pytest.raises(ArgumentError, match="must be a positive number"):
            RKD(distance_weight=0, angle_weight=0)

    def test_equal_examples_are_finite(self):
        student, teacher = self.vectors()
        student[1], teacher[1] = student[0], teacher[0]
        student.requires_grad_()
        RKD()(student, teacher).backward()
        assert student.grad.isfinite().all()


class TestRKDWithMetric(TestRKD):
    zero_for_equals = False

    def make(self):
        return RKD(GSSFMetric(8, block_size=4, constraint="psd"))

    def reference(self, loss, student, teacher, mask):
        """With a positive-definite metric: the distances and angles of L x̂."""
        factor = torch.linalg.cholesky(loss.metric.matrix())
        return super().reference(loss, (student / student.norm(dim=1, keepdim=True)) @ factor, teacher, mask)


class TestCRD(DistillationLossContract):
    zero_for_equals = False

    def make(self):
        return CRD(temperature=0.2)

    def reference(self, loss, student, teacher, mask):
        s, t = (f / f.norm(dim=1, keepdim=True) for f in (student, teacher))
        scores = (
            s @ (torch.eye(4).double() if loss.metric is None else loss.metric.matrix()) @ t.T
        ) * loss.contrast.scale.log_scale.exp()
        n = range(len(s))
        rows = sum(scores[i].exp().sum().log() - scores[i, i] for i in n) / len(s)
        return (rows + sum(scores[:, i].exp().sum().log() - scores[i, i] for i in n) / len(s)) / 2

    def loss(self):
        loss = super().loss()
        with torch.no_grad():
            loss.contrast.scale.log_scale.fill_(1.5)
        return loss

    def test_starts_at_its_temperature(self):
        torch.testing.assert_close(CRD(temperature=0.1).contrast.scale.factor(), torch.tensor(10.0))
        with pytest.raises(ArgumentError, match="`temperature` must be a positive number, but got 0"):
            CRD(temperature=0)

    def test_an_example_twice_is_no_negative(self):
        student, teacher = self.vectors()
        teacher[1] = teacher[0]
        expected = torch.eye(6, dtype=torch.bool)
        expected[0, 1] = expected[1, 0] = True
        assert torch.equal(same_example(teacher), expected)


class TestCRDWithMetric(TestCRD):
    def make(self):
        return CRD(GSSFMetric(4, block_size=2), temperature=0.2)


class TestCKA(DistillationLossContract):
    student_width = 8

    def make(self):
        return CKA()

    def reference(self, loss, student, teacher, mask):
        x, y = student - student.mean(0), teacher - teacher.mean(0)
        return 1 - (x.T @ y).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm())

    def test_is_blind_to_rotation_and_scale(self):
        student, teacher = self.vectors()
        turned = 3 * student @ torch.linalg.qr(torch.randn(8, 8).double()).Q
        torch.testing.assert_close(CKA()(turned, teacher), CKA()(student, teacher))
