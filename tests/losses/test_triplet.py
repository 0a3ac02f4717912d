"""Triplet losses by masks: the contract of losses; their choices against loops and pytorch-metric-learning."""

from importlib import import_module

import pytest
import torch
from contracts.loss import LossContract

from gssf_plug.errors import ArgumentError
from gssf_plug.losses import BatchHardTriplet, SemiHardTriplet


def sides(scores, relevance, forbidden, row):
    columns = range(len(scores[0]))
    positives = [scores[row][j] for j in columns if relevance[row][j] and not forbidden[row][j]]
    negatives = [scores[row][j] for j in columns if not relevance[row][j] and not forbidden[row][j]]
    return positives, negatives


def mean_or_zero(values):
    return sum(values) / len(values) if values else 0.0


def batch_hard_by_loops(scores, relevance, forbidden, hinge):
    values = []
    for row in range(len(scores)):
        positives, negatives = sides(scores, relevance, forbidden, row)
        if positives and negatives:
            values.append(hinge(max(negatives) - min(positives)))
    return mean_or_zero(values)


def semi_hard_by_loops(scores, relevance, forbidden, hinge):
    values = []
    for row in range(len(scores)):
        positives, negatives = sides(scores, relevance, forbidden, row)
        for positive in positives:
            farther = [negative for negative in negatives if negative < positive]
            if farther:
                values.append(hinge(max(farther) - positive))
    return mean_or_zero(values)


def margin_hinge(x):
    return max(0.0, 0.3 + x)


class TestBatchHard(LossContract):
    def make(self):
        return BatchHardTriplet()

    def reference(self, scores, relevance, forbidden):
        return batch_hard_by_loops(scores, relevance, forbidden, margin_hinge)


class TestSoftMargin(LossContract):
    def make(self):
        return BatchHardTriplet(margin=None)

    def reference(self, scores, relevance, forbidden):
        return batch_hard_by_loops(
            scores, relevance, forbidden, lambda x: torch.tensor(x).double().exp().log1p().item()
        )


class TestSemiHard(LossContract):
    def make(self):
        return SemiHardTriplet(margin=0.9)

    def reference(self, scores, relevance, forbidden):
        return semi_hard_by_loops(scores, relevance, forbidden, lambda x: max(0.0, 0.9 + x))


class TestLearnedScale(LossContract):
    def make(self):
        loss = BatchHardTriplet(learned_scale=True)
        with torch.no_grad():
            loss.scale.log_scale.fill_(0.5)
        return loss

    def reference(self, scores, relevance, forbidden):
        factor = torch.tensor(0.5).double().exp().item()
        scaled = [[factor * score for score in row] for row in scores]
        return batch_hard_by_loops(scaled, relevance, forbidden, margin_hinge)


def batch(rows=64, classes=16):
    labels = torch.arange(classes).repeat_interleave(rows // classes)
    features = torch.nn.functional.normalize(torch.randn(rows, 8))
    return features, labels


def test_batch_hard_equals_pytorch_metric_learning():
    losses, miners, distances = (
        import_module(f"pytorch_metric_learning.{name}") for name in ("losses", "miners", "distances")
    )
    features, labels = batch()
    cosine = distances.CosineSimilarity()
    triplets = miners.BatchHardMiner(distance=cosine)(features, labels)
    theirs = losses.TripletMarginLoss(margin=0.3, distance=cosine, reducer=mean_reducer())(features, labels, triplets)
    itself = torch.eye(len(features), dtype=torch.bool)
    ours = BatchHardTriplet()(features @ features.T, labels[:, None] == labels, forbidden=itself)
    torch.testing.assert_close(ours, theirs)


def mean_reducer():
    from pytorch_metric_learning.reducers import MeanReducer

    return MeanReducer()


@pytest.mark.parametrize("loss", [BatchHardTriplet(), SemiHardTriplet()], ids=["hard", "semi-hard"])
def test_no_tensor_is_larger_than_the_scores(loss):
    features, labels = batch(rows=128)
    scores = (features @ features.T).requires_grad_()
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            tensors = result if isinstance(result, tuple) else (result,)
            largest = max([largest, *(t.numel() for t in tensors if isinstance(t, torch.Tensor))])
            return result

    relevance = labels[:, None] == labels
    with Watch():
        loss(scores, relevance, forbidden=torch.eye(128, dtype=torch.bool)).backward()
    assert largest <= scores.numel()


@pytest.mark.bad_input
@pytest.mark.parametrize("margin", [0.0, -0.1, float("inf")])
def test_margin(margin):
    with pytest.raises(ArgumentError, match="`margin` must be None or a positive number"):
        BatchHardTriplet(margin=margin)
