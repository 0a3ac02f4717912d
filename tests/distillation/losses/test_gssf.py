"""The objectives of this library against references by loops in float64, and that the metric cannot cheat."""

import pytest
import torch
from contracts.distillation_loss import DistillationLossContract, perturbed

from gssf_plug import GSSFMetric
from gssf_plug.distillation.losses import MSE, Contrastive, Regression, Relation
from gssf_plug.errors import ArgumentError


class TestRelation(DistillationLossContract):
    student_width = 8

    def make(self):
        return Relation(GSSFMetric(8, block_size=4, constraint="symmetric"))

    def reference(self, loss, student, teacher, mask):
        matrix, n, total = loss.metric.matrix(), len(student), 0
        for i in range(n):
            for j in range(n):
                if i != j:
                    ours = student[i] @ matrix @ student[j] / (student[i].norm() * student[j].norm())
                    total += (ours - torch.cosine_similarity(teacher[i], teacher[j], dim=0)) ** 2
        return total / (n * (n - 1))

    def test_scale_alone_does_not_help(self):
        """Doubling the metric of a perfect student raises the loss: the targets fix the scale."""
        student, loss = torch.randn(6, 8), Relation(GSSFMetric(8, block_size=4))
        assert loss(student, student) < 1e-12
        with torch.no_grad():
            loss.metric.structures["diagonal"].weight.mul_(2)
        assert loss(student, student) > 1e-3


class TestSoftenedRelation(DistillationLossContract):
    student_width = 8

    def make(self):
        return Relation(GSSFMetric(8, block_size=4, constraint="symmetric"), temperature=0.3)

    def reference(self, loss, student, teacher, mask):
        matrix, n, total = loss.metric.matrix(), len(student), 0
        for i in range(n):
            others = [j for j in range(n) if j != i]
            ours = torch.stack(
                [student[i] @ matrix @ student[j] / student[i].norm() / student[j].norm() for j in others]
            )
            theirs = torch.stack([torch.cosine_similarity(teacher[i], teacher[j], dim=0) for j in others])
            p, q = (theirs / 0.3).softmax(0), (ours / 0.3).softmax(0)
            total += (p * (p / q).log()).sum()
        return total / n

    @pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
    def test_temperature_is_positive(self, temperature):
        with pytest.raises(ArgumentError, match="`temperature` must be a positive number"):
            Relation(GSSFMetric(8, block_size=4), temperature=temperature)


class TestContrastive(DistillationLossContract):
    zero_for_equals = False

    def make(self):
        return Contrastive(GSSFMetric(4, block_size=2), scale=3.0)

    def reference(self, loss, student, teacher, mask):
        s, t = (f / f.norm(dim=1, keepdim=True) for f in (student, teacher))
        scores = loss.contrast.scale.log_scale.exp() * (s @ loss.metric.matrix() @ t.T)
        n = range(len(s))
        rows = sum(scores[i].exp().sum().log() - scores[i, i] for i in n) / len(s)
        return (rows + sum(scores[:, i].exp().sum().log() - scores[i, i] for i in n) / len(s)) / 2

    def test_the_scale_is_learned(self):
        loss = Contrastive(GSSFMetric(4, block_size=2))
        loss(torch.randn(5, 4), torch.randn(5, 4)).backward()
        assert loss.contrast.scale.log_scale.grad.abs() > 0


class TestRegression(DistillationLossContract):
    def make(self):
        return Regression(GSSFMetric(4, block_size=2, constraint="psd", normalize=False))

    def reference(self, loss, student, teacher, mask):
        def gaussian(s, t):
            return torch.distributions.MultivariateNormal(s, precision_matrix=loss.metric.matrix()).log_prob(t)

        rows = []
        for i in range(len(student)):
            keep = [...] if student.ndim == 2 else (range(5) if mask is None else mask[i].nonzero().flatten().tolist())
            rows.append(sum(gaussian(student[i][j], teacher[i][j]) for j in keep) / len(keep))
        constant = 0.5 * torch.log(torch.tensor(2 * torch.pi, dtype=torch.float64))
        return -sum(rows) / len(rows) / 4 - constant

    def test_starts_as_half_the_squared_error(self):
        student, teacher = self.vectors()
        torch.testing.assert_close(self.make().double()(student, teacher), MSE()(student, teacher) / 2)

    def test_the_metric_cannot_cheat_by_shrinking(self):
        """With fixed residuals the best precision is the inverse covariance, not zero."""
        residual = torch.randn(4000, 4, dtype=torch.float64) * torch.tensor([0.5, 1.0, 2.0, 3.0])
        loss = perturbed(self.make()).double()
        optimizer = torch.optim.Adam(loss.parameters(), lr=0.02)
        for _ in range(600):
            optimizer.zero_grad()
            loss(residual, torch.zeros_like(residual)).backward()
            optimizer.step()
        learned = loss.metric.matrix().diagonal().detach()
        torch.testing.assert_close(learned, 1 / residual.square().mean(0), rtol=0.05, atol=0.01)

    def test_the_metric_is_a_precision(self):
        for metric in (GSSFMetric(4, block_size=2), GSSFMetric(4, block_size=2, constraint="psd")):
            with pytest.raises(ArgumentError, match="`metric` must have constraint='psd' and normalize=False"):
                Regression(metric)


@pytest.mark.bad_input
@pytest.mark.parametrize("loss", [Contrastive, Regression, Relation])
def test_these_need_a_metric(loss):
    with pytest.raises(ArgumentError, match="`metric` must be a GSSFMetric, but got None. Build"):
        loss(None)
    with pytest.raises(ArgumentError, match="`metric` must be a GSSFMetric or None, but got str"):
        loss("cosine")


@pytest.mark.bad_input
def test_projected_is_a_flag():
    with pytest.raises(ArgumentError, match="`projected` must be True or False, but got 'no'"):
        Relation(GSSFMetric(4, block_size=2), projected="no")
