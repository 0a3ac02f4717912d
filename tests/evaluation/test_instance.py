import tracemalloc

import numpy as np
import pytest
import torch

from gssf_plug import GSSFMetric
from gssf_plug.errors import ArgumentError
from gssf_plug.evaluation import instance_recall


def reference(scores, labels, gallery_labels=None, ks=(1, 2, 4, 8)):
    """Every query sorted by itself, negatives first among equals, itself left out by index."""
    scores, labels = scores.detach().double().numpy(), labels.numpy()
    itself = gallery_labels is None
    gallery_labels = labels if itself else gallery_labels.numpy()
    measured = []
    for query, row in enumerate(scores):
        hit = gallery_labels == labels[query]
        order = [item for item in np.lexsort((hit, -row)) if not (itself and item == query)]
        hits = hit[order]
        relevant = hits.sum()
        if relevant == 0:
            continue
        precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
        recall = [hits[:k].any() for k in ks]
        measured.append([*recall, (precision * hits)[:relevant].sum() / relevant, hits[:relevant].sum() / relevant])
    names = [*(f"R@{k}" for k in ks), "MAP@R", "R-precision"]
    return dict(zip(names, 100 * np.mean(np.array(measured, dtype=float), axis=0), strict=True))


def random_set(count=90, classes=25, dim=8):
    labels = torch.randint(classes, (count,))
    labels[:3] = torch.arange(3) + 100  # classes with one member
    return torch.randn(200, dim)[labels] + 0.7 * torch.randn(count, dim), labels


def perturbed(dim):
    metric = GSSFMetric(dim, block_size=4)
    with torch.no_grad():
        for parameter in metric.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return metric


@pytest.mark.parametrize("query_chunk", [None, 13, 1])
def test_equals_sorting(query_chunk):
    features, labels = random_set()
    metric = perturbed(8)
    got = instance_recall(features, labels, metric=metric, query_chunk=query_chunk)
    assert got == pytest.approx(reference(metric(features, features), labels))


def test_ties_are_lost_by_the_positive():
    features, labels = random_set()
    features = features[:, :4].sign()  # norm 2: scores are exact, and most of them tie
    assert instance_recall(features, labels) == pytest.approx(reference(features @ features.T / 4, labels))
    assert instance_recall(torch.ones(4, 4), torch.tensor([0, 0, 1, 1]), ks=(1, 3))["R@1"] == 0


def test_the_item_itself_is_masked_where_it_is_not_its_own_nearest():
    metric = GSSFMetric(4, terms=("diagonal",))
    with torch.no_grad():
        metric.structures["diagonal"].weight.copy_(torch.tensor([-1.0, 1.0, 1.0, 1.0]))
    features = torch.tensor([[1.0, 0.5, 0, 0], [-1.0, 0.5, 0, 0], [0, 0, 1, 0.1], [0, 0, 1, 0.2]])
    scores = metric(features, features)
    assert scores[0].argmax() == 1
    assert instance_recall(features, torch.tensor([0, 0, 1, 1]), metric=metric, ks=(1,))["R@1"] == 100


def test_a_gallery_of_its_own():
    queries, labels = random_set()
    gallery, gallery_labels = random_set(count=70)
    metric = perturbed(8)
    got = instance_recall(queries, labels, metric=metric, gallery=gallery, gallery_labels=gallery_labels, ks=(1, 10))
    assert got == pytest.approx(reference(metric(queries, gallery), labels, gallery_labels, ks=(1, 10)))


@pytest.mark.bad_input
class TestBadInput:
    def refuses(self, match, features=None, labels=None, **options):
        features = torch.randn(6, 8) if features is None else features
        labels = torch.tensor([0, 0, 1, 1, 2, 2]) if labels is None else labels
        with pytest.raises(ArgumentError, match=match):
            instance_recall(features, labels, **options)

    def test_lengths(self):
        self.refuses(r"`labels` must hold one whole number per row of `features` \(6\)", labels=torch.arange(5))

    def test_nothing(self):
        self.refuses("`features` must hold at least one item, but got none", features=torch.empty(0, 8))

    def test_no_positive(self):
        self.refuses(
            "`labels` must give some query a positive, but got only classes without a second member",
            labels=torch.arange(6),
        )
        self.refuses(
            "but got no class of `gallery_labels`", gallery=torch.randn(2, 8), gallery_labels=torch.tensor([7, 8])
        )

    def test_gallery_and_labels_belong_together(self):
        self.refuses("`gallery_labels` must come with `gallery`", gallery_labels=torch.arange(6))
        self.refuses(
            r"`gallery_labels` must hold one whole number per row of `gallery` \(2\), but got None",
            gallery=torch.randn(2, 8),
        )

    def test_metric_of_another_dimension(self):
        self.refuses("`features` must have the metric's 16 channels", metric=GSSFMetric(16))

    def test_places(self):
        self.refuses("`ks` must hold at least one place from 1", ks=())


@pytest.mark.parametrize("gallery", [10, 100])
def test_many_queries_of_a_small_gallery_take_little_memory(gallery):
    """Classes by their prototypes: what is made for each query must not be wider than what it is made from."""
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            result = function(*arguments, **(options or {}))
            leaves = torch.utils._pytree.tree_leaves(result)
            sizes.extend(
                part.untyped_storage().nbytes()
                for part in leaves
                if torch.is_tensor(part) and part.layout == torch.strided
            )
            return result

    features, prototypes = torch.randn(20_000, 4), torch.randn(gallery, 4)
    labels, classes = torch.randint(gallery, (20_000,)), torch.arange(gallery)
    with Watch():  # imports what it needs
        instance_recall(features[:5000], labels[:5000], gallery=prototypes, gallery_labels=classes)
    tracemalloc.start()  # numpy's memory
    with Watch():
        found = instance_recall(features, labels, gallery=prototypes, gallery_labels=classes, ks=(1,))
    sizes.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
    scores = torch.nn.functional.normalize(features.double()) @ torch.nn.functional.normalize(prototypes.double()).T
    assert found["R@1"] == pytest.approx(100 * (scores.argmax(1) == labels).double().mean().item())
    assert max(sizes) < 2**25
