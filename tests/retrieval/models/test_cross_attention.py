"""Cross-attention by blocks against the published algorithm, pair by pair in float64."""

import math

import pytest
import torch
from torch.nn.functional import leaky_relu

from gssf_plug import GSSFMetric
from gssf_plug.retrieval.models import cross_attention
from gssf_plug.retrieval.models.cross_attention import ImageToText, LogSumExp, TextToImage, average
from gssf_plug.retrieval.models.embedding import Fragments
from gssf_plug.retrieval.models.local_alignment import LocalAlignment

AGGREGATES = {"mean": average, "lse": LogSumExp(6.0)}


def slow_score(v, w, kind, temperature, aggregate, metric, attention):
    """One image (R, D), one caption (T, D), valid fragments only: SCAN's own steps, the attended vectors formed."""
    logits = torch.stack([torch.stack([attention(region, word) for word in w]) for region in v])  # (R, T)
    v = v / v.norm(dim=1, keepdim=True)
    w = w / w.norm(dim=1, keepdim=True)
    clipped = leaky_relu(logits, 0.1)
    similarities = []
    if kind is TextToImage:
        clipped = clipped / (clipped.norm(dim=1, keepdim=True) + 1e-8)
        for t in range(len(w)):
            attended = (temperature * clipped[:, t]).softmax(0) @ v
            similarities.append(metric(attended, w[t]))
    else:
        clipped = clipped / (clipped.norm(dim=0, keepdim=True) + 1e-8)
        for r in range(len(v)):
            attended = (temperature * clipped[r]).softmax(0) @ w
            similarities.append(metric(v[r], attended))
    values = torch.stack(similarities)
    if aggregate == "mean":
        return values.mean()
    return torch.log(torch.exp(6.0 * values).sum()) / 6.0


def cosine(x, y):
    return (x @ y) / (x.norm() * y.norm())


def bilinear(matrix):
    return lambda x, y: (x @ matrix @ y) / (x.norm() * y.norm())


def perturbed(dim=8):
    metric = GSSFMetric(dim, block_size=4, grouping=torch.randperm(dim)).double()
    with torch.no_grad():
        for parameter in metric.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return metric


def items(count, width, dim=8, dtype=torch.float64):
    lengths = torch.randint(1, width + 1, (count,))
    mask = torch.arange(width) < lengths[:, None]
    features = torch.randn(count, width, dim, dtype=dtype).masked_fill(~mask[..., None], float("nan"))
    return Fragments(features, mask)


def reference(images, texts, *options):
    rows = [
        [slow_score(v[vm], w[wm], *options) for w, wm in zip(texts.features, texts.mask, strict=True)]
        for v, vm in zip(images.features, images.mask, strict=True)
    ]
    return torch.stack([torch.stack(row) for row in rows])


@pytest.mark.parametrize("kind", [TextToImage, ImageToText])
@pytest.mark.parametrize("aggregate", ["mean", "lse"])
@pytest.mark.parametrize("learned", ["cosine", "both", "shared", "similarity", "attention"])
def test_equals_the_published_algorithm(kind, aggregate, learned):
    images, texts = items(5, 4), items(7, 6)
    metric = perturbed() if learned in ("both", "shared", "similarity") else None
    other = {"both": perturbed(), "attention": perturbed(), "shared": metric}.get(learned)
    model = LocalAlignment(
        None, None, metric=metric, attention_metric=other, alignments=[kind(5.0, AGGREGATES[aggregate])]
    )
    similarity, attention = (cosine if part is None else bilinear(part.matrix()) for part in (metric, other))
    expected = reference(images, texts, kind, 5.0, aggregate, similarity, attention)
    torch.testing.assert_close(model.score(images, texts), expected, atol=1e-7, rtol=1e-6)


def test_a_neutral_metric_is_scan_with_cosine():
    images, texts = items(4, 5, dtype=torch.float32), items(6, 3, dtype=torch.float32)
    both = [TextToImage(), ImageToText()]
    metric = GSSFMetric(8, block_size=4)
    plain = LocalAlignment(None, None, alignments=both)
    neutral = LocalAlignment(None, None, metric=metric, attention_metric=metric, alignments=both)
    torch.testing.assert_close(neutral.score(images, texts), plain.score(images, texts))
    each = [LocalAlignment(None, None, alignments=[one]).score(images, texts) for one in both]
    torch.testing.assert_close(plain.score(images, texts), (each[0] + each[1]) / 2)


@pytest.mark.parametrize("pairs", [1, 6, 10_000])
def test_blocks_change_nothing_and_gradients_are_the_whole_ones(pairs, monkeypatch):
    images, texts = items(7, 4), items(70, 3)
    metric = perturbed()
    parts = [TextToImage(), ImageToText(4.0, average)]

    def run(recompute):
        v = torch.where(images.mask[..., None], images.features, 0.0).requires_grad_()
        w = torch.where(texts.mask[..., None], texts.features, 0.0).requires_grad_()
        if not recompute:
            monkeypatch.setattr(cross_attention, "checkpoint", lambda function, *tensors, **_: function(*tensors))
        scores = cross_attention.align(
            parts, v, w, images.mask, texts.mask, similarity=metric.fold, pairs=pairs if recompute else 10_000
        )
        weights = torch.linspace(-1, 1, scores.numel(), dtype=scores.dtype).reshape(scores.shape)
        gradients = torch.autograd.grad((scores * weights).sum(), [v, w, *metric.parameters()])
        return scores.detach(), gradients

    blocked, whole = run(True), run(False)
    torch.testing.assert_close(blocked, whole)
    assert all(gradient.abs().max() > 1e-6 for gradient in whole[1])


def test_gradcheck():
    v, w = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(3, 2, 4, dtype=torch.float64)
    masks = torch.tensor([[1, 1, 1], [1, 1, 0]]).bool(), torch.tensor([[1, 1], [1, 0], [1, 1]]).bool()
    model = LocalAlignment(
        None, None, metric=GSSFMetric(4, block_size=2).double(), alignments=[TextToImage(), ImageToText()]
    )
    inputs = [v.requires_grad_(), w.requires_grad_()]
    assert torch.autograd.gradcheck(lambda a, b: model.score(Fragments(a, masks[0]), Fragments(b, masks[1])), inputs)


def test_what_is_masked_never_counts():
    images, texts = items(3, 4), items(5, 6)
    model = LocalAlignment(None, None, metric=perturbed(), alignments=[TextToImage(), ImageToText()])
    wider = Fragments(torch.cat([texts.features, torch.full((5, 3, 8), 1e30)], 1).double(), texts.widened(9).mask)
    torch.testing.assert_close(model.score(images.widened(7), wider), model.score(images, texts))


@pytest.mark.parametrize("kind", [TextToImage, ImageToText])
def test_items_without_fragments_score_finite_and_zero_on_average(kind):
    images, texts = items(3, 4), items(5, 6)
    for aggregate in (average, LogSumExp()):
        model = LocalAlignment(None, None, alignments=[kind(5.0, aggregate)])
        for pair in (
            (images, Fragments(texts.features, texts.mask & False)),
            (Fragments(images.features, images.mask & False), texts),
        ):
            scores = model.score(*pair)
            assert scores.isfinite().all()
            assert aggregate is not average or scores.eq(0).all()


def test_log_sum_exp_is_between_the_mean_and_the_maximum():
    values = torch.tensor([[0.1, 0.5, 0.9]])
    mask = torch.tensor([[True, True, False]])
    expected = math.log(math.exp(0.6) + math.exp(3.0)) / 6
    torch.testing.assert_close(LogSumExp()(values, mask), torch.tensor([expected]))
    torch.testing.assert_close(LogSumExp(1e3)(values, mask), torch.tensor([0.5]))
    torch.testing.assert_close(average(values, mask), torch.tensor([0.3]))
