"""Exact search against a full stable sort, and against FAISS over the same folded and gallery vectors."""

from pathlib import Path

import faiss
import numpy as np
import pytest
import torch
from torch import Tensor

from gssf_plug import GSSFMetric
from gssf_plug.errors import ArgumentError
from gssf_plug.metric import topk


def trained_metric(dim: int = 16) -> GSSFMetric:
    metric = GSSFMetric(dim, block_size=4)
    with torch.no_grad():
        for parameter in metric.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return metric


def reference(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Sort each row by falling score, then rising index."""
    rows = [sorted(range(scores.shape[1]), key=lambda j, row=row: (-row[j].item(), j))[:k] for row in scores]
    indices = torch.tensor(rows)
    return scores.gather(1, indices), indices


@pytest.mark.parametrize(("query_chunk", "gallery_chunk"), [(1024, 16384), (3, 7), (1, 1), (5, 40)])
@pytest.mark.parametrize("k", [1, 5, 40])
def test_equals_a_full_sort_with_ties(query_chunk: int, gallery_chunk: int, k: int) -> None:
    """Repeated gallery rows tie; a matrix of small whole numbers keeps their scores equal in every chunking."""
    metric = GSSFMetric(4, terms=("diagonal",), normalize=False)
    metric.structures["diagonal"].weight.data = torch.tensor([1.0, 2.0, -1.0, 3.0])
    queries, gallery = torch.randint(-2, 3, (11, 4)).float(), torch.randint(-1, 2, (40, 4)).float()
    scores, indices = reference(metric(queries, gallery).detach(), k)
    assert scores[:, -1].unique().numel() < scores.shape[0] or k == 1  # ties across rows are common here
    found = topk(metric, queries, gallery, k, query_chunk=query_chunk, gallery_chunk=gallery_chunk)
    assert torch.equal(found.indices, indices)
    assert torch.equal(found.scores, scores)


def test_equals_all_pairs_for_a_trained_metric() -> None:
    metric = trained_metric()
    queries, gallery = torch.randn(9, 16), torch.randn(50, 16)
    found = topk(metric, queries, gallery, 7, gallery_chunk=13)
    expected = metric(queries, gallery).topk(7)
    torch.testing.assert_close(found.scores, expected.values)
    assert torch.equal(found.indices, expected.indices)
    cosine = topk(None, queries, gallery, 7)
    assert not torch.equal(cosine.indices, found.indices)
    assert torch.equal(cosine.indices, GSSFMetric(16)(queries, gallery).topk(7).indices)


@pytest.mark.parametrize("as_function", [False, True])
def test_forbidden_pairs_are_not_returned(as_function: bool) -> None:
    metric = trained_metric()
    features = torch.randn(20, 16)
    mask = torch.eye(20, dtype=torch.bool) | (torch.rand(20, 20) < 0.3)
    mask[4] = True
    mask[4, [3, 8]] = False
    forbidden = (lambda rows, columns: mask[rows][:, columns]) if as_function else mask
    found = topk(metric, features, features, 5, forbidden=forbidden, gallery_chunk=6, query_chunk=7)
    expected, order = reference(metric(features, features).detach().masked_fill(mask, float("-inf")), 5)
    torch.testing.assert_close(found.scores, expected)
    assert torch.equal(found.indices, order.masked_fill(expected == float("-inf"), -1))
    assert found.indices[4].tolist()[2:] == [-1, -1, -1]


def test_faiss_over_folded_queries_finds_the_same() -> None:
    metric = trained_metric(32)
    queries, gallery = torch.randn(30, 32), torch.randn(500, 32)
    index = faiss.IndexFlatIP(32)
    index.add(metric.gallery(gallery).numpy())
    faiss_scores, faiss_indices = index.search(metric.fold(queries).detach().numpy(), 10)
    found = topk(metric, queries, gallery, 10)
    np.testing.assert_allclose(found.scores.numpy(), faiss_scores, atol=1e-5)
    differ = found.indices.numpy() != faiss_indices
    gaps = np.abs(np.diff(faiss_scores, axis=1)).min(axis=1, keepdims=True)
    assert not (differ & (gaps > 1e-5)).any()  # only near ties may change places
    before = topk(None, queries, gallery, 10)
    assert (before.indices != found.indices).float().mean() > 0.1


def test_half_precision_is_scored_in_float32() -> None:
    metric = trained_metric()
    queries, gallery = torch.randn(5, 16).half(), torch.randn(50, 16).half()
    found = topk(metric, queries, gallery, 3)
    right = metric(queries.float(), gallery.float()).topk(3)
    torch.testing.assert_close(found.scores, right.values)
    assert torch.equal(found.indices, right.indices)


@pytest.mark.parametrize("count", [3, 150])
def test_sides_of_different_precision(count: int) -> None:
    metric, queries, gallery = trained_metric(), torch.randn(count, 16), torch.randn(50, 16)
    right = metric.double()(queries.double(), gallery.double()).topk(3).values.detach()
    metric.float()
    for sides in ((queries.double(), gallery), (queries, gallery.double())):
        found = topk(metric, *sides, 3)
        assert found.scores.dtype == torch.float64
        torch.testing.assert_close(found.scores, right, atol=1e-6, rtol=0)
    torch.testing.assert_close(topk(metric, queries, gallery, 3).scores.double(), right, atol=2e-6, rtol=0)


@pytest.mark.parametrize("order", ["rising", "falling", "level", "random"])
@pytest.mark.parametrize("k", [1, 3, 30])
def test_any_order_of_the_gallery(order: str, k: int) -> None:
    """Rising scores bring k better items with every chunk, falling ones none."""
    metric = GSSFMetric(2, normalize=False, terms=("diagonal",))
    values = {"rising": torch.arange(60.0), "falling": -torch.arange(60.0), "level": torch.ones(60)}
    gallery = torch.stack([values.get(order, torch.randint(9, (60,)).float()), torch.zeros(60)], dim=1)
    queries = torch.tensor([[1.0, 0.0], [2.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    scores, indices = reference(metric(queries, gallery).detach(), k)
    for gallery_chunk in (1, 4, 13, 60):
        found = topk(metric, queries, gallery, k, gallery_chunk=gallery_chunk)
        assert torch.equal(found.indices, indices)
        assert torch.equal(found.scores, scores)


def test_a_memory_mapped_gallery(tmp_path: Path) -> None:
    metric, queries, gallery = trained_metric(), torch.randn(4, 16), torch.randn(90, 16).half()
    path = str(tmp_path / "gallery.bin")
    gallery.numpy().tofile(path)
    mapped = torch.from_file(path, size=gallery.numel(), dtype=torch.float16).view(-1, 16)
    found, right = topk(metric, queries, mapped, 5, gallery_chunk=20), topk(metric, queries, gallery, 5)
    assert torch.equal(found.indices, right.indices)
    mapped[77, 3] = float("nan")  # a private copy of the page
    with pytest.raises(ArgumentError, match="`gallery` must be finite, but got NaN or infinity in row 77"):
        topk(metric, queries, mapped, 5, gallery_chunk=20)


@pytest.mark.parametrize("k", [1, 3])
def test_every_item_finds_itself(k: int) -> None:
    gallery = torch.randn(700, 33).round()  # scores of 1 are where bfloat16 rounds the farthest
    found = topk(None, gallery[:200], gallery, k)
    assert (found.indices[:, 0] == torch.arange(200)).all()
    assert (found.indices >= 0).all()


def test_no_queries() -> None:
    found = topk(None, torch.randn(0, 4), torch.randn(3, 4), 2)
    assert found.scores.shape == found.indices.shape == (0, 2)


def test_memory_is_bounded_by_chunk_and_result() -> None:
    """The largest tensor that is ever formed is a chunk of scores."""
    sizes: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), options=None):  # noqa: ANN001, ANN202
            result = function(*arguments, **(options or {}))
            sizes.extend(
                part.untyped_storage().nbytes()
                for part in torch.utils._pytree.tree_leaves(result)
                if isinstance(part, Tensor) and part.dtype in (torch.float32, torch.bool)
            )
            return result

    queries, gallery = torch.randn(64, 8), torch.randn(4096, 8)
    hidden = torch.zeros(64, 4096, dtype=torch.bool)
    given = {each.untyped_storage().nbytes() for each in (gallery, hidden)}
    with Watch():
        topk(GSSFMetric(8, block_size=4), queries, gallery, 5, query_chunk=16, gallery_chunk=256, exclude=hidden)
    assert max(size for size in sizes if size not in given) <= 16 * 256 * 4


@pytest.mark.bad_input
class TestBadInput:
    def test_empty_gallery(self) -> None:
        with pytest.raises(ArgumentError, match="`gallery` must hold at least one item, but got an empty gallery"):
            topk(None, torch.randn(2, 4), torch.randn(0, 4), 1)

    @pytest.mark.parametrize("k", [0, 6])
    def test_k_beyond_the_gallery(self, k: int) -> None:
        with pytest.raises(
            ArgumentError, match=f"`k` must be between 1 and the gallery's size 5, but got {k}. Ask for fewer"
        ):
            topk(None, torch.randn(2, 4), torch.randn(5, 4), k)

    @pytest.mark.parametrize("side", ["queries", "gallery"])
    def test_nan_features(self, side: str) -> None:
        features = {"queries": torch.randn(3, 4), "gallery": torch.randn(5, 4)}
        features[side][2, 1] = float("nan")
        with pytest.raises(ArgumentError, match=f"`{side}` must be finite, but got NaN or infinity in row 2"):
            topk(None, features["queries"], features["gallery"], 1)

    @pytest.mark.parametrize("count", [2, 150])
    def test_a_metric_that_diverged(self, count: int) -> None:
        metric = trained_metric()
        metric.structures["diagonal"].weight.data[3] = float("nan")
        with pytest.raises(ArgumentError, match="`metric` must give finite scores, but got NaN or infinity in folded"):
            topk(metric, torch.randn(count, 16), torch.randn(5, 16), 1)
        raw = GSSFMetric(16, normalize=False)
        with pytest.raises(ArgumentError, match="`metric` must give finite scores, but got a product that overflows"):
            topk(raw, 1e30 * torch.randn(count, 16), 1e30 * torch.randn(5, 16), 1)

    def test_no_matrix_of_features(self) -> None:
        rule = "must be a floating-point tensor of features N×D"
        with pytest.raises(ArgumentError, match=rf"`queries` {rule}, but got torch.float32 of shape \(4,\)"):
            topk(None, torch.randn(4), torch.randn(5, 4), 1)
        with pytest.raises(ArgumentError, match="`gallery` must be a tensor, a numpy array, or lists .* but got str"):
            topk(None, torch.randn(2, 4), "features", 1)

    def test_wrong_width(self) -> None:
        with pytest.raises(ArgumentError, match="`queries` must have 16 channels"):
            topk(trained_metric(), torch.randn(2, 4), torch.randn(5, 16), 1)

    def test_mask_of_another_shape(self) -> None:
        with pytest.raises(ArgumentError, match=r"`forbidden` must have shape \(2, 5\), but got \(5, 2\)"):
            topk(None, torch.randn(2, 4), torch.randn(5, 4), 1, forbidden=torch.zeros(5, 2, dtype=torch.bool))

    def test_chunks_are_positive(self) -> None:
        with pytest.raises(ArgumentError, match="`gallery_chunk` must be at least 1, but got 0"):
            topk(None, torch.randn(2, 4), torch.randn(5, 4), 1, gallery_chunk=0)

    def test_distributed_without_processes(self) -> None:
        with pytest.raises(ArgumentError, match="`distributed` must be False without an initialised torch.distributed"):
            topk(None, torch.randn(2, 4), torch.randn(5, 4), 1, distributed=True)
