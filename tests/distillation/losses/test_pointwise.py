"""The classic losses per example against references by loops in float64."""

import pytest
import torch
from contracts.distillation_loss import DistillationLossContract

from gssf_plug.distillation.losses import MGD, MSE, VID, AttentionTransfer, Cosine, LogitKL
from gssf_plug.errors import ArgumentError


def slow_mean(value, student, teacher, mask):
    """Mean over examples of the mean over valid tokens of `value(s, t)`."""
    rows = []
    for i, (s, t) in enumerate(zip(student, teacher, strict=True)):
        if student.ndim == 2:
            rows.append(value(s, t))
        else:
            keep = range(len(s)) if mask is None else mask[i].nonzero().flatten().tolist()
            rows.append(sum(value(s[j], t[j]) for j in keep) / len(keep))
    return sum(rows) / len(rows)


class TestMSE(DistillationLossContract):
    def make(self):
        return MSE()

    def reference(self, loss, student, teacher, mask):
        return slow_mean(
            lambda s, t: sum((a - b) ** 2 for a, b in zip(s, t, strict=True)) / len(s), student, teacher, mask
        )


class TestCosine(DistillationLossContract):
    def make(self):
        return Cosine()

    def reference(self, loss, student, teacher, mask):
        return slow_mean(lambda s, t: 1 - s @ t / (s.norm() * t.norm()), student, teacher, mask)


class TestAttentionTransfer(DistillationLossContract):
    student_width, takes_vectors = 3, False

    def make(self):
        return AttentionTransfer()

    def reference(self, loss, student, teacher, mask):
        total = 0
        for i in range(len(student)):
            keep = slice(None) if mask is None else mask[i]
            a, b = ((f[i][keep] ** 2).sum(-1) for f in (student, teacher))
            total += ((a / (a @ a).sqrt() - b / (b @ b).sqrt()) ** 2).mean()
        return total / len(student)

    @pytest.mark.bad_input
    def test_a_vector_has_no_positions(self):
        with pytest.raises(ArgumentError, match=r"`student` must be tokens \(N, T, D\) for AttentionTransfer"):
            AttentionTransfer()(torch.ones(3, 4), torch.ones(3, 4))


class TestVID(DistillationLossContract):
    zero_for_equals = False

    def make(self):
        return VID(4, initial_variance=2.0)

    def reference(self, loss, student, teacher, mask):
        variance = torch.log1p(torch.exp(loss.raw_variance)) + 1e-5
        normal = lambda s, t: -torch.distributions.Normal(s, variance.sqrt()).log_prob(t).mean()  # noqa: E731
        constant = 0.5 * torch.log(torch.tensor(2 * torch.pi, dtype=torch.float64))
        return slow_mean(normal, student, teacher, mask) - constant

    @pytest.mark.parametrize("variance", [1e-4, 5.0, 5000.0])
    def test_starts_at_its_variance(self, variance):
        start = torch.nn.functional.softplus(VID(3, initial_variance=variance).raw_variance) + 1e-5
        torch.testing.assert_close(start, torch.full((3,), variance))


class TestMGD(DistillationLossContract):
    zero_for_equals = False

    def make(self):
        torch.manual_seed(1)
        return MGD(4)

    def reference(self, loss, student, teacher, mask):
        first, _, last = loss.generator

        def value(s, t):
            hidden = (first.weight @ s + first.bias).clamp_min(0)
            return ((last.weight @ hidden + last.bias - t) ** 2).mean()

        return slow_mean(value, student, teacher, mask)

    def test_drops_whole_channels_of_an_example_while_training(self):
        loss = MGD(400, share=0.25)
        seen = []
        loss.generator.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        loss.train()(torch.ones(2, 3, 400), torch.ones(2, 3, 400))
        dropped = seen[0].eq(0)
        assert torch.equal(dropped[:, 0], dropped[:, 2])
        assert 0.15 < dropped.float().mean() < 0.35
        with pytest.raises(ArgumentError, match=r"`share` must lie in \[0, 1\), but got 1"):
            MGD(4, share=1)


class TestLogitKL(DistillationLossContract):
    def make(self):
        return LogitKL(temperature=3.0)

    def reference(self, loss, student, teacher, mask):
        def value(s, t):
            p, q = torch.exp(t / 3) / torch.exp(t / 3).sum(), torch.exp(s / 3) / torch.exp(s / 3).sum()
            return 9 * (p * (p / q).log()).sum()

        return slow_mean(value, student, teacher, mask)

    @pytest.mark.parametrize("temperature", [0, -1.0, float("inf")])
    def test_a_temperature_is_positive(self, temperature):
        with pytest.raises(ArgumentError, match="`temperature` must be a positive number"):
            LogitKL(temperature=temperature)

    def test_classes_agree(self):
        with pytest.raises(ArgumentError, match="`student` must have the teacher's 5 classes"):
            LogitKL()(torch.ones(2, 4), torch.ones(2, 5))
