"""dL/dS in closed form is that of autograd in float64, for any pairs; other losses are asked through autograd."""

import math

import pytest
import torch
from torch import nn

from gssf_plug import GSSFMetric
from gssf_plug.losses import BatchHardTriplet, Hinge, InfoNCE, Sigmoid
from gssf_plug.losses.score_gradients import ListedPairs, score_gradient

LOSSES = {
    "softmax": lambda: InfoNCE(scale=50.0, learned_scale=False),
    "softmax, learned": InfoNCE,
    "hinge": Hinge,
    "hinge, wide margin": lambda: Hinge(margin=3.0),
    "hinge, learned": lambda: Hinge(learned_scale=True),
    "hinge, warming up": lambda: Hinge(warmup_steps=5),
    "sigmoid": Sigmoid,
    "triplet": BatchHardTriplet,
}


def batch(left_out: bool, dtype: torch.dtype = torch.float32, spread: float = 0.4):
    """30 × 21 scores; several positives, rows and columns without one, a row that is left out as a whole."""
    generator = torch.Generator().manual_seed(3)
    scores = (spread * torch.randn(30, 21, generator=generator, dtype=torch.float64)).to(dtype)
    known = torch.rand(30, 21, generator=generator) < 0.08
    known[:21] |= torch.eye(21, dtype=torch.bool)
    known[28:] = False
    known[:, 20] = False
    out = (torch.rand(30, 21, generator=generator) < 0.1) & ~known & left_out
    out[29] = left_out
    return scores, known, out


def listed(known: torch.Tensor, out: torch.Tensor) -> ListedPairs:
    return ListedPairs(*known.nonzero(as_tuple=True), out.flatten().nonzero()[:, 0])


@pytest.mark.parametrize("spread", [0.4, 40.0])
@pytest.mark.parametrize("left_out", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_is_that_of_autograd_in_float64(name: str, left_out: bool, spread: float) -> None:
    scores, known, out = batch(left_out, spread=spread)
    loss, precise = LOSSES[name](), LOSSES[name]().double()
    leaf = scores.double().requires_grad_()
    precise(leaf, known, exclude=out if left_out else None).backward()
    gradient = score_gradient(loss, scores, listed(known, out))
    assert gradient.dtype == torch.float32
    torch.testing.assert_close(gradient.double(), leaf.grad, atol=2e-6, rtol=2e-4)
    assert float(gradient.abs().max()) > 1e-3
    for own, other in zip(loss.parameters(), precise.parameters(), strict=True):
        assert (own.grad is None) == (other.grad is None)
        if own.grad is not None:
            torch.testing.assert_close(own.grad.double(), other.grad, atol=1e-4, rtol=1e-4)


def test_the_loss_of_a_plain_loop_falls_as_the_gradient_says() -> None:
    """Central differences of −log softmax, written out, beside the closed form."""
    scores, known, out = batch(True, torch.float64)

    def value(matrix: torch.Tensor) -> float:
        total = 0.0
        for scored, positive, hidden in ((matrix, known, out), (matrix.T, known.T, out.T)):
            terms = []
            for row, right, away in zip(scored.tolist(), positive.tolist(), hidden.tolist(), strict=True):
                below = [math.exp(50 * s) for s, gone in zip(row, away, strict=True) if not gone]
                asked = [-math.log(math.exp(50 * s) / sum(below)) for s, good in zip(row, right, strict=True) if good]
                terms += [sum(asked) / len(asked)] if asked else []
            total += 0.5 * sum(terms) / len(terms)
        return total

    gradient = score_gradient(LOSSES["softmax"](), scores, listed(known, out))
    for row, column in ((0, 0), (3, 17), (12, 5), (20, 20), (29, 2)):
        step = torch.zeros_like(scores)
        step[row, column] = 1e-6
        slope = (value(scores + step) - value(scores - step)) / 2e-6
        assert gradient[row, column].item() == pytest.approx(slope, abs=2e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_a_fold_learns_what_it_learns_through_the_whole_graph(name: str) -> None:
    _, known, out = batch(True)
    generator = torch.Generator().manual_seed(0)
    queries, items = torch.randn(30, 12, generator=generator), torch.randn(21, 12, generator=generator)
    found = []
    for fused in (True, False):
        metric, loss = GSSFMetric(12, block_size=4), LOSSES[name]()
        with torch.no_grad():
            for weight in metric.parameters():
                weight += 0.3 * torch.randn(weight.shape, generator=generator.manual_seed(1))
        folded, gallery = metric.fold(queries), metric.gallery(items)
        if fused:
            folded.backward(score_gradient(loss, folded.detach() @ gallery.T, listed(known, out)) @ gallery)
        else:
            loss(folded @ gallery.T, known, exclude=out).backward()
        found.append([weight.grad for weight in metric.parameters()])
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-6, rtol=1e-4)


def test_a_subclass_with_a_formula_of_its_own_is_asked() -> None:
    class Doubled(InfoNCE):
        def forward(self, *args, **options):
            return 2 * super().forward(*args, **options)

    scores, known, out = batch(False)
    plain, doubled = (score_gradient(loss, scores, listed(known, out)) for loss in (InfoNCE(), Doubled()))
    torch.testing.assert_close(doubled, 2 * plain)


@pytest.mark.parametrize("older", [False, True])
def test_somebodys_loss_gets_its_mask_by_either_name(older: bool) -> None:
    class New(nn.Module):
        def forward(self, scores, relevance, exclude=None):
            return (scores * relevance).sum() + scores[exclude].sum()

    class Old(nn.Module):
        def forward(self, scores, relevance, forbidden=None):
            return (scores * relevance).sum() + scores[forbidden].sum()

    scores, known, out = batch(True)
    gradient = score_gradient(Old() if older else New(), scores, listed(known, out))
    assert torch.equal(gradient, known.float() + out.float())
