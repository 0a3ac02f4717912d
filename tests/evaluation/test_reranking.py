import numpy as np
import pytest
import torch

from gssf_plug import GSSFMetric
from gssf_plug.errors import ArgumentError
from gssf_plug.evaluation import KReciprocal, reid_ranking


def dense_reference(distance, queries, k1, k2, weight):
    """The authors' algorithm, step by step on dense matrices; distance is N×N, the query rows first, 0 … 1."""
    items = len(distance)
    ranking = np.argsort(distance, axis=1, kind="stable")
    encoding = np.zeros_like(distance)
    for i in range(items):
        forward = ranking[i, : k1 + 1]
        reciprocal = forward[np.where(ranking[forward, : k1 + 1] == i)[0]]
        expanded = reciprocal
        for candidate in reciprocal:
            around = ranking[candidate, : int(np.around(k1 / 2)) + 1]
            mutual = around[np.where(ranking[around, : int(np.around(k1 / 2)) + 1] == candidate)[0]]
            if len(np.intersect1d(mutual, reciprocal)) > 2 / 3 * len(mutual):
                expanded = np.append(expanded, mutual)
        expanded = np.unique(expanded)
        weights = np.exp(-distance[i, expanded])
        encoding[i, expanded] = weights / weights.sum()
    if k2 > 1:
        encoding = np.stack([encoding[ranking[i, :k2]].mean(axis=0) for i in range(items)])
    shared = np.minimum(encoding[:queries, None], encoding[None, queries:]).sum(-1)
    return (1 - weight) * (1 - shared / (2 - shared)) + weight * distance[:queries, queries:]


def small_pieces(monkeypatch):
    """Every loop of the module takes several turns."""
    monkeypatch.setattr("gssf_plug.evaluation.reranking.AT_ONCE", 400)
    monkeypatch.setattr("gssf_plug.evaluation.reranking.CACHED", 300)
    monkeypatch.setattr("gssf_plug.evaluation.reranking.TABLE", 300)
    monkeypatch.setattr("gssf_plug.evaluation.reranking.TILE", (10, 40))


def clustered(count, dim=8, classes=12, noise=0.6):
    labels = torch.randint(classes, (count,))
    generator = torch.Generator().manual_seed(7)
    return torch.randn(classes, dim, generator=generator)[labels] + noise * torch.randn(count, dim), labels


def perturbed(dim, **options):
    metric = GSSFMetric(dim, block_size=4, **options).double()
    with torch.no_grad():
        for parameter in metric.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return metric


@pytest.mark.parametrize(("k1", "k2", "weight"), [(20, 6, 0.3), (7, 1, 0.0), (5, 3, 1.0), (10, 6, 0.5)])
def test_equals_the_dense_algorithm_under_cosine(k1, k2, weight):
    (query, _), (gallery, _) = clustered(25), clustered(90)
    query, gallery = query.double(), gallery.double()
    unit = torch.nn.functional.normalize(torch.cat([query, gallery]))
    squared = torch.cdist(unit, unit).square().numpy()
    np.fill_diagonal(squared, 0)
    right = dense_reference(squared / squared.max(axis=1, keepdims=True), 25, k1, k2, weight)
    got = -KReciprocal(k1=k1, k2=k2, weight=weight)(query, gallery)
    np.testing.assert_allclose(got.numpy(), right, atol=1e-12)


def test_equals_the_dense_algorithm_under_a_learned_metric(monkeypatch):
    """Asymmetric scores, an item not its own nearest, and chunks of every loop."""
    small_pieces(monkeypatch)
    (query, _), (gallery, _) = clustered(25), clustered(90)
    query, gallery = query.double(), gallery.double()
    metric = perturbed(8, terms=("diagonal", "block_diagonal"))
    both = torch.cat([query, gallery])
    scores = metric(both, both).detach()
    assert (scores.argmax(1) != torch.arange(len(both))).any()
    best, worst = scores.amax(1, keepdim=True), scores.amin(1, keepdim=True)
    distance = ((best - scores) / (best - worst)).numpy()
    ranked = distance.copy()
    np.fill_diagonal(ranked, -1)  # itself first
    order = np.argsort(ranked, axis=1, kind="stable")
    monkeypatch.setattr(np, "argsort", lambda *args, **kwargs: order)
    right = dense_reference(distance, 25, 8, 4, 0.3)
    got = -KReciprocal(k1=8, k2=4)(query, gallery, metric)
    np.testing.assert_allclose(got.numpy(), right, atol=1e-12)


def test_torch_without_products_of_sparse_rows(monkeypatch):
    """As built without MKL, for Arm."""
    query, gallery = clustered(25)[0].double(), clustered(90)[0].double()
    right = KReciprocal(k1=8, k2=4)(query, gallery)
    monkeypatch.setattr("gssf_plug.evaluation.reranking._multiplies_by_rows", lambda device: False)
    torch.testing.assert_close(KReciprocal(k1=8, k2=4)(query, gallery), right, rtol=0, atol=1e-14)


def test_helps_on_clustered_data():
    query, ids = clustered(60, noise=0.9)
    gallery, gallery_ids = clustered(240, noise=0.9)
    labels = (ids, gallery_ids, torch.zeros(60).long(), torch.ones(240).long())
    plain = reid_ranking(query, gallery, *labels)
    assert reid_ranking(query, gallery, *labels, rerank=KReciprocal())["mAP"] > plain["mAP"] + 3


def test_identical_items_do_not_divide_by_zero():
    scores = KReciprocal(k1=2, k2=1)(torch.ones(2, 4), torch.ones(4, 4))
    assert scores.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("signs", [True, False])
def test_no_chunk_or_thread_changes_a_score(monkeypatch, dtype, signs):
    """Vectors of ±1, most of whose scores tie, and others."""
    query, gallery = torch.randn(40, 16, dtype=dtype), torch.randn(150, 16, dtype=dtype)
    if signs:
        query, gallery = query.sign(), gallery.sign()
    rerank, same = KReciprocal(k1=8, k2=3), {"rtol": 0, "atol": 0 if dtype == torch.float32 else 1e-15}
    right = rerank(query, gallery)
    assert right.dtype == dtype
    threads = torch.get_num_threads()
    torch.set_num_threads(1 + threads % 2)
    small_pieces(monkeypatch)
    try:
        torch.testing.assert_close(rerank(query, gallery), right, **same)
    finally:
        torch.set_num_threads(threads)


def test_what_two_items_share_is_the_same_whichever_of_them_asks():
    """It is added in whole numbers, so the order in which their neighbours come leaves no trace."""
    query, gallery = clustered(30)[0], clustered(200)[0]
    rerank = KReciprocal(k1=8, k2=3, weight=0)
    assert torch.equal(rerank(gallery, query).T, rerank(query, gallery))


@pytest.mark.bad_input
class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"k1": 0}, "`k1` must be at least 1, but got 0"),
            ({"k1": 3, "k2": 5}, r"`k2` must be at most k1 \+ 1 = 4, but got 5"),
            ({"weight": 1.5}, "`weight` must lie between 0 and 1, but got 1.5"),
        ],
    )
    def test_values(self, options, match):
        with pytest.raises(ArgumentError, match=match):
            KReciprocal(**options)

    def test_more_neighbours_than_items(self):
        with pytest.raises(ArgumentError, match="`k1` must be below the number of items, 8, but got 20"):
            KReciprocal()(torch.randn(3, 4), torch.randn(5, 4))

    def test_features(self):
        with pytest.raises(ArgumentError, match="`query` must hold at least one item"):
            KReciprocal()(torch.empty(0, 4), torch.randn(5, 4))
        with pytest.raises(ArgumentError, match="`gallery` must have the metric's 16 channels"):
            KReciprocal()(torch.randn(3, 16), torch.randn(5, 4), GSSFMetric(16))
