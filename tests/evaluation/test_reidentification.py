import numpy as np
import pytest
import torch

from gssf_plug import GSSFMetric
from gssf_plug.errors import ArgumentError
from gssf_plug.evaluation import reid_ranking

KEYS = ("query_ids", "gallery_ids", "query_cams", "gallery_cams")


def plain_protocol(scores, query_ids, gallery_ids, query_cams, gallery_cams, ranks=(1, 5, 10)):
    """The per-query protocol of public re-ID code, negatives first among equals; None for a query without a match."""
    scores = scores.detach().double().numpy()
    query_ids, gallery_ids, query_cams, gallery_cams = (
        labels.numpy() for labels in (query_ids, gallery_ids, query_cams, gallery_cams)
    )
    measured = []
    for row, identity, camera in zip(scores, query_ids, query_cams, strict=True):
        order = np.lexsort((gallery_ids == identity, -row))
        kept = [g for g in order if gallery_ids[g] != -1 and (gallery_ids[g] != identity or gallery_cams[g] != camera)]
        hits = np.nonzero(gallery_ids[kept] == identity)[0]
        if len(hits) == 0:
            continue
        precision = [(i + 1) / (place + 1) for i, place in enumerate(hits)]
        cmc = [hits[0] < k for k in ranks]
        measured.append([np.mean(precision), *cmc, len(hits) / (hits[-1] + 1)])
    values = 100 * np.mean(np.array(measured, dtype=float), axis=0)
    return dict(zip(["mAP", *(f"R@{k}" for k in ranks), "mINP"], values, strict=True)), len(measured)


def random_sets(queries=60, gallery=150, identities=15, dim=8):
    """Junk (-1), distractors (0), queries without a match, several cameras."""
    labels = {
        "query_ids": torch.randint(1, identities + 6, (queries,)),
        "gallery_ids": torch.randint(-1, identities, (gallery,)),
        "query_cams": torch.randint(3, (queries,)),
        "gallery_cams": torch.randint(3, (gallery,)),
    }
    centres = torch.randn(identities + 7, dim)
    query = centres[labels["query_ids"]] + 0.8 * torch.randn(queries, dim)
    items = centres[labels["gallery_ids"]] + 0.8 * torch.randn(gallery, dim)
    return query, items, labels


def perturbed(dim):
    metric = GSSFMetric(dim, block_size=4)
    with torch.no_grad():
        for parameter in metric.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return metric


@pytest.mark.parametrize("query_chunk", [None, 7, 1])
def test_equals_the_plain_protocol(query_chunk):
    query, gallery, labels = random_sets()
    metric = perturbed(8)
    right, matched = plain_protocol(metric(query, gallery), *labels.values())
    assert matched < len(query)
    assert (labels["gallery_ids"] == -1).any()
    assert reid_ranking(query, gallery, *labels.values(), metric=metric, query_chunk=query_chunk) == pytest.approx(
        right
    )


def test_ties_are_lost_by_the_positive():
    query, gallery, labels = random_sets()
    query, gallery = query[:, :4].sign(), gallery[:, :4].sign()  # norm 2: scores are exact, and most of them tie
    right, _ = plain_protocol(query @ gallery.T / 4, *labels.values(), ranks=(1, 3, 20))
    assert reid_ranking(query, gallery, *labels.values(), ranks=(1, 3, 20)) == pytest.approx(right)
    ids, ones = torch.tensor([1, 2, 3, 1]), torch.ones(4, 4)
    tied = reid_ranking(ones[:1], ones, ids[:1], ids, torch.tensor([0]), torch.ones(4).long(), ranks=(1, 3))
    assert tied == pytest.approx({"mAP": 100 * (1 / 3 + 2 / 4) / 2, "R@1": 0, "R@3": 100, "mINP": 50})


def test_junk_and_same_camera_images_change_nothing():
    query, gallery, labels = random_sets()
    query_ids, gallery_ids, query_cams, gallery_cams = labels.values()
    one = slice(2, 3)
    before = reid_ranking(query[one], gallery, query_ids[one], gallery_ids, query_cams[one], gallery_cams)
    more = torch.cat([gallery, query[one], query[one]])  # copies, nearest of all: one of its own camera, one junk
    ids = torch.cat([gallery_ids, query_ids[one], torch.tensor([-1])])
    cams = torch.cat([gallery_cams, query_cams[one], query_cams[one] + 1])
    assert reid_ranking(query[one], more, query_ids[one], ids, query_cams[one], cams) == before
    seen = reid_ranking(query[one], more, query_ids[one], ids, query_cams[one], cams + 3)
    assert seen["R@1"] == 100
    assert seen != before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_features_are_scored_in_float32(dtype):
    query, gallery, labels = random_sets()
    query, gallery = query.to(dtype), gallery.to(dtype)
    right = reid_ranking(query.float(), gallery.float(), *labels.values())
    assert reid_ranking(query, gallery, *labels.values()) == right


def test_sides_of_different_precision():
    query, gallery, labels = random_sets()
    for sides in ((query.double(), gallery), (query, gallery.double())):
        assert reid_ranking(*sides, *labels.values()) == pytest.approx(reid_ranking(query, gallery, *labels.values()))


def test_rerank_gives_the_scores():
    query, gallery, labels = random_sets()
    seen = []

    def reversed_scores(query, gallery, metric):
        seen.append(metric)
        return -metric(query, gallery)

    metric = perturbed(8)
    right, _ = plain_protocol(-metric(query, gallery), *labels.values())
    assert reid_ranking(query, gallery, *labels.values(), metric=metric, rerank=reversed_scores) == pytest.approx(right)
    assert seen == [metric]


def test_raw_features_whose_products_leave_float32():
    query, gallery, labels = random_sets()
    raw = GSSFMetric(8, block_size=4, normalize=False)
    right = reid_ranking(query, gallery, **labels, metric=raw)
    for size in (2.0**100, 2.0**-100):
        assert reid_ranking(query * size, gallery * size, **labels, metric=raw) == right


def test_string_labels_and_numpy_say_the_same():
    query, gallery, labels = random_sets()
    data = {"query": query, "gallery": gallery, **labels}
    right = reid_ranking(**data)
    strings = {name: [str(label) for label in data[name].tolist()] for name in data if data[name].dtype == torch.long}
    assert reid_ranking(**data | strings) == right
    assert reid_ranking(**{name: value.numpy() for name, value in data.items()}) == right
    assert reid_ranking(**data | {name: np.array(labels, dtype=object) for name, labels in strings.items()}) == right


@pytest.mark.bad_input
class TestBadInput:
    def refuses(self, match, **changes):
        query, gallery, labels = random_sets()
        arguments = {"query": query, "gallery": gallery, **labels, **changes}
        with pytest.raises(ArgumentError, match=match):
            reid_ranking(**arguments)

    def test_empty_query_set(self):
        self.refuses(
            "`query` must hold at least one item, but got none",
            query=torch.empty(0, 8),
            query_ids=torch.empty(0).long(),
            query_cams=torch.empty(0).long(),
        )

    def test_gallery_without_any_positive(self):
        text = (
            "`gallery_ids` must give some query a positive, but got no identity of `query_ids` seen by another camera"
        )
        self.refuses(text, gallery_ids=torch.full((150,), 99))
        self.refuses(
            "junk and same-camera images removed",
            query_cams=torch.zeros(60).long(),
            gallery_cams=torch.zeros(150).long(),
        )

    @pytest.mark.parametrize("name", KEYS)
    def test_labels_of_another_length_or_missing(self, name):
        side = name.split("_")[0]
        self.refuses(
            rf"`{name}` must hold one whole number per row of `{side}` \(\d+\), but got torch.int64 of shape "
            r"\(3,\)",
            **{name: torch.arange(3)},
        )
        self.refuses(rf"`{name}` must hold one whole number per row of `{side}` \(\d+\), but got None", **{name: None})

    def test_labels_that_are_no_numbers(self):
        self.refuses("`query_cams` must hold one whole number.*got torch.float32", query_cams=torch.zeros(60))

    def test_metric_of_another_dimension(self):
        self.refuses("`query` must have the metric's 16 channels", metric=GSSFMetric(16))

    def test_widths_that_differ(self):
        self.refuses("`gallery` must have the other side's 8 channels", gallery=torch.randn(150, 4))

    def test_nan(self):
        gallery = torch.randn(150, 8)
        gallery[77, 0] = float("inf")
        self.refuses("`gallery` must be finite, but got NaN or infinity in row 77", gallery=gallery)

    def test_scores_that_are_not_finite(self):
        """NaN loses every comparison: without a check all positives would rank first."""
        query, gallery, _ = random_sets()
        raw = GSSFMetric(8, block_size=4, normalize=False)
        huge = {"query": query.double() * 1e200, "gallery": gallery.double() * 1e200}
        self.refuses("`metric` must give finite scores, but got NaN", metric=raw, **huge)
        for value in ("nan", "inf", "-inf"):
            scores = torch.randn(60, 150)
            scores[7, 9] = float(value)
            self.refuses("`metric` must give finite scores", rerank=lambda *_, scores=scores: scores)

    def test_rerank_of_another_shape(self):
        self.refuses(
            r"`rerank` must give a tensor of \(60, 150\) scores, but got shape \(3, 3\)",
            rerank=lambda *_: torch.ones(3, 3),
        )
        self.refuses("`rerank` must give a tensor of .* but got NoneType", rerank=lambda *_: None)

    def test_arrays(self):
        whole = np.ones((60, 8), int)
        self.refuses("`query` must be a floating-point matrix .*, but got torch.int64 of shape", query=whole)
        self.refuses("`query_ids` must hold one whole number per row of `query`", query_ids=["a"] * 60)

    def test_only_junk(self):
        self.refuses("must give some query a positive", gallery_ids=torch.full((150,), -1))

    def test_places(self):
        self.refuses(r"`ranks` must hold at least one place from 1, but got \('1',\)", ranks=("1",))
        self.refuses(r"`ranks` must hold at least one place from 1, but got \(0, 1\)", ranks=(0, 1))
        self.refuses("`query_chunk` must be None or at least 1, but got 0", query_chunk=0)
