import math

import numpy as np
import pytest
import torch

from gssf_plug import GSSFMetric
from gssf_plug.errors import ArgumentError
from gssf_plug.evaluation import image_text, image_text_ranks, image_text_recall, image_text_recall_of_scores
from gssf_plug.evaluation.image_text import tied_too_often
from gssf_plug.metric.exact import pair_products
from gssf_plug.metric.exact.canonical import canonical_queries, canonical_scores


def reference(scores, owners):
    """The usual protocol: each query sorted by itself, the positive first among equals."""

    def rank(row, positives):
        order = sorted(range(len(row)), key=lambda item: (-row[item], item not in positives))
        return next(place for place, item in enumerate(order) if item in positives)

    scores, owners = scores.double().numpy(), owners.numpy()
    captions = [set(np.nonzero(owners == image)[0]) for image in range(len(scores))]
    i2t = np.array([rank(scores[image], captions[image]) for image in range(len(scores)) if captions[image]])
    t2i = np.array([rank(scores[:, text], {owners[text]}) for text in range(len(owners))])
    measures = {}
    for name, ranks in (("i2t", i2t), ("t2i", t2i)):
        for k in (1, 5, 10):
            measures[f"{name}_R@{k}"] = 100 * np.mean(ranks < k)
        measures[f"{name}_median_rank"] = math.floor(np.median(ranks)) + 1
    measures["rsum"] = sum(value for name, value in measures.items() if "R@" in name)
    best = {image: scores[image][list(own)].max() for image, own in enumerate(captions) if own}
    foreign = [[text for text in range(len(owners)) if text not in own] for own in captions]
    tied = [bool((scores[image][foreign[image]] == top).any()) for image, top in best.items()]
    measures["i2t_tied"] = 100 * np.mean(tied)
    levels = [(scores[:, text] == scores[owner, text]).sum() > 1 for text, owner in enumerate(owners)]
    measures["t2i_tied"] = 100 * np.mean(levels)
    return measures


def perturbed(dim, **options):
    metric = GSSFMetric(dim, block_size=4, **options)
    with torch.no_grad():
        for parameter in metric.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return metric


def noisy_pairs(images, per_image, dim=8, noise=0.7):
    owners = torch.arange(images).repeat_interleave(per_image)
    x = torch.randn(images, dim)
    return x, x[owners] + noise * torch.randn(len(owners), dim), owners


def assert_same(got, right):
    assert got.keys() == right.keys()
    for name in right:
        assert got[name] == pytest.approx(right[name], abs=1e-9), name


@pytest.mark.parametrize("chunks", [(512, 25_600), (7, 31), (20, 5)])
def test_equals_the_sorting_protocol(chunks):
    images, texts, owners = noisy_pairs(43, 5)
    metric = perturbed(8)
    got = image_text_recall(images, texts, owners, metric=metric, image_chunk=chunks[0], text_chunk=chunks[1])
    assert_same(got, reference(metric(images, texts).detach(), owners))
    assert 100 < got["rsum"] < 590


def test_cosine_without_a_metric():
    images, texts, owners = noisy_pairs(31, 3)
    scores = torch.nn.functional.normalize(images) @ torch.nn.functional.normalize(texts).T
    assert_same(image_text_recall(images, texts, owners), reference(scores, owners))


def test_uneven_captions_in_any_order_and_images_without_any():
    images, texts, owners = noisy_pairs(40, torch.randint(0, 6, (40,)), noise=1.0)
    assert (torch.bincount(owners, minlength=40) == 0).any()
    shuffle = torch.randperm(len(owners))
    metric = perturbed(8)
    right = reference(metric(images, texts).detach(), owners)
    got = image_text_recall(images, texts[shuffle], owners[shuffle], metric=metric, image_chunk=9, text_chunk=13)
    assert_same(got, right)


def test_a_tie_is_won_by_the_positive():
    values = torch.tensor([1.0, -1.0])
    images, texts = values[torch.randint(2, (30, 4))], values[torch.randint(2, (90, 4))]  # norm 2: scores are exact
    owners = torch.arange(30).repeat_interleave(3)
    with pytest.warns(UserWarning, match="tied with another item for .* % \\(i2t\\), .* % \\(t2i\\)"):
        got = image_text_recall(images, texts, owners, image_chunk=4, text_chunk=7)
    assert_same(got, reference(images @ texts.T / 4, owners))


def test_a_collapsed_encoder_is_no_perfect_retriever():
    with pytest.warns(UserWarning, match=r"tied .* for 100\.0 % \(i2t\), 100\.0 % \(t2i\) .*a collapsed encoder"):
        same = image_text_recall(torch.ones(60, 4), torch.ones(60, 4), torch.arange(60))
    assert (same["rsum"], same["i2t_tied"], same["t2i_tied"]) == (600.0, 100.0, 100.0)
    assert tied_too_often(same)
    with pytest.warns(UserWarning, match="collapsed"):
        assert image_text_recall_of_scores(torch.ones(6, 6), torch.arange(6))["i2t_tied"] == 100.0
    apart = image_text_recall(torch.eye(6), torch.eye(6), torch.arange(6))
    assert (apart["i2t_tied"], apart["t2i_tied"], tied_too_often(apart)) == (0, 0, False)
    assert not tied_too_often({"mAP": 50.0})


@pytest.mark.filterwarnings("ignore:The positive is tied")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", ["whole numbers", "copies", "nearly equal", "subnormal"])
def test_ties_are_counted_exactly_in_every_chunk(kind, dtype, monkeypatch):
    monkeypatch.setattr(image_text, "fast_dtype", lambda device: dtype)
    images, texts = torch.randint(-2, 3, (30, 5)).float(), torch.randint(-2, 3, (70, 5)).float()
    if kind == "copies":
        images, texts = torch.randn(6, 5)[torch.randint(6, (30,))], torch.randn(9, 5)[torch.randint(9, (70,))]
    if kind == "nearly equal":
        images, texts = (torch.nextafter(torch.ones_like(x), 1 + x) for x in (images, texts))
    if kind == "subnormal":
        images, texts = images * 2.0**-149, texts * 2.0**-149
    owners = torch.randint(30, (70,))
    queries = canonical_queries(None, images)
    rows, columns = torch.meshgrid(torch.arange(30), torch.arange(70), indexing="ij")
    scores = canonical_scores(queries, rows.flatten(), texts, columns.flatten()).reshape(30, 70)
    right = reference(scores, owners)
    for chunks in ((512, 25_600), (7, 23)):
        for pieces in (2_097_152, 100):
            monkeypatch.setattr(image_text_ranks, "LOOKED_AT_ONCE", pieces)
            got = image_text_recall(images, texts, owners, image_chunk=chunks[0], text_chunk=chunks[1])
            assert_same(got, right)


def test_folds_average_every_measure_over_its_own_galleries():
    images, texts, owners = noisy_pairs(50, 5, noise=1.5)
    metric = perturbed(8)
    parts = []
    for fold in range(5):
        rows, columns = slice(10 * fold, 10 * fold + 10), slice(50 * fold, 50 * fold + 50)
        parts.append(reference(metric(images[rows], texts[columns]).detach(), owners[columns] - 10 * fold))
    shuffle = torch.randperm(len(owners))
    got = image_text_recall(images, texts[shuffle], owners[shuffle], metric=metric, folds=5, image_chunk=6)
    assert_same(got, {name: np.mean([part[name] for part in parts]) for name in parts[0]})
    recalls = [value for name, value in got.items() if "R@" in name]
    assert got["rsum"] == pytest.approx(sum(recalls))


def test_folds_of_uneven_size_cover_every_image():
    images, texts, owners = noisy_pairs(11, 2)
    parts = []
    for start, stop in ((0, 3), (3, 7), (7, 11)):
        own = (owners >= start) & (owners < stop)
        parts.append(image_text_recall(images[start:stop], texts[own], owners[own] - start))
    got = image_text_recall(images, texts, owners, folds=3)
    assert_same(got, {name: np.mean([part[name] for part in parts]) for name in parts[0]})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_scores_are_float32_or_better(dtype):
    images, texts, owners = noisy_pairs(60, 2)
    images, texts = images.to(dtype), texts.to(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    metric = perturbed(8).to(wide)
    right = image_text_recall(images.to(wide), texts.to(wide), owners, metric=metric)
    assert_same(image_text_recall(images, texts, owners, metric=metric), right)


def test_memory_stays_within_a_tile(monkeypatch):
    monkeypatch.setattr(pair_products, "ENTRIES_AT_ONCE", 2048)  # of gathered pairs, 1 MB otherwise
    images, texts, owners = torch.randn(300, 16), torch.randn(900, 16), torch.arange(300).repeat_interleave(3)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                largest = max(largest, result.numel())
            return result

    with Watch():
        image_text_recall(images, texts, owners, image_chunk=60, text_chunk=120)
    assert largest <= 900 * 16  # the finiteness check reads the inputs; no score matrix (270,000) is formed


@pytest.mark.parametrize("folds", [None, 3])
@pytest.mark.filterwarnings("ignore:The positive is tied")
def test_a_score_matrix_ranks_as_the_features_that_made_it(folds):
    x, y, owners = noisy_pairs(15, 3)
    order = torch.randperm(len(y))
    y, owners, metric = y[order], owners[order], perturbed(8)
    scores = metric(x, y).detach()
    got = image_text_recall_of_scores(scores, owners, folds=folds)
    assert_same(got, image_text_recall(x, y, owners, metric=metric, folds=folds))
    ties = (scores * 2).round()
    assert_same(image_text_recall_of_scores(ties.half(), owners), reference(ties, owners))


@pytest.mark.bad_input
class TestBadInput:
    def refuses(self, match, images=None, texts=None, owners=None, **options):
        images = torch.randn(4, 8) if images is None else images
        texts = torch.randn(4, 8) if texts is None else texts
        owners = torch.arange(len(texts)) if owners is None else owners
        with pytest.raises(ArgumentError, match=match):
            image_text_recall(images, texts, owners, **options)

    def test_scores_that_overflow(self):
        metric, huge = GSSFMetric(8, block_size=4, normalize=False), 1e200 * torch.randn(4, 8).double()
        self.refuses(
            "`metric` must give finite scores, but got NaN or infinity", images=huge, texts=huge, metric=metric
        )

    def test_nothing_to_rank(self):
        self.refuses("`image_features` must hold at least one item, but got none", images=torch.empty(0, 8))
        self.refuses("`text_features` must hold at least one item, but got none", texts=torch.empty(0, 8))

    def test_widths(self):
        self.refuses(
            r"`text_features` must have the other side's 8 channels, but got shape \(4, 6\)", texts=torch.randn(4, 6)
        )
        self.refuses(
            r"`image_features` must have the metric's 12 channels, but got shape \(4, 8\)",
            metric=GSSFMetric(12, block_size=4),
        )

    def test_not_a_matrix_of_floats(self):
        self.refuses(
            r"must be a floating-point matrix of features N×D, but got torch.int64 of shape \(4, 8\)",
            images=torch.ones(4, 8, dtype=torch.long),
        )

    def test_nan_names_the_row(self):
        texts = torch.randn(4, 8)
        texts[2, 5] = float("nan")
        self.refuses("`text_features` must be finite, but got NaN or infinity in row 2", texts=texts)

    def test_nan_metric(self):
        metric = GSSFMetric(8, block_size=4)
        torch.nn.init.constant_(metric.structures["diagonal"].weight, float("nan"))
        self.refuses(
            "`metric` must have finite weights, but got NaN or infinity in 'structures.diagonal.weight'", metric=metric
        )

    def test_owners(self):
        self.refuses(
            r"`image_of_text` must hold one whole number per row of `text_features` \(4\), "
            r"but got torch.int64 of shape \(3,\)",
            owners=torch.arange(3),
        )
        self.refuses(
            "`image_of_text` must name rows of `image_features`, 0 … 3, but got 4 for caption 1",
            owners=torch.tensor([0, 4, 1, 2]),
        )

    def test_folds(self):
        self.refuses("`folds` must be None or between 1 and the 4 images, but got 5", folds=5)
        self.refuses(
            "`folds` must leave captions in every fold, but got none in fold 1",
            owners=torch.tensor([0, 1, 1, 0]),
            folds=2,
        )

    def test_chunks(self):
        self.refuses("`text_chunk` must be at least 1, but got 0", text_chunk=0)

    def test_distributed_without_a_group(self):
        self.refuses("`distributed` must be False without an initialised", distributed=True)

    def test_scores(self):
        owners = torch.tensor([0, 4, 1, 2])
        with pytest.raises(ArgumentError, match="`image_of_text` must name rows of `scores`, 0 … 3, but got 4 for"):
            image_text_recall_of_scores(torch.randn(4, 4), owners)
        with pytest.raises(ArgumentError, match=r"one whole number per row of `scores.T` \(5\)"):
            image_text_recall_of_scores(torch.randn(4, 5), owners)
        with pytest.raises(ArgumentError, match="`scores` must be finite"):
            image_text_recall_of_scores(torch.full((4, 4), float("nan")), owners.clamp(max=3))
