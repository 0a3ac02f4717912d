"""Ties, duplicates and chunks: every ranking function beside a loop over canonical scores, on the fast path too.

The reference sorts each query by itself, by scores that are exact: rational numbers where features are small whole
numbers, `math.fsum` of exact products elsewhere.
"""

import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from metric.scored import sum_exactly
from workers import ranking_results
from workers.launching import run

from gssf_plug import GSSFMetric
from gssf_plug.evaluation import (
    KReciprocal,
    counting,
    document_ranking,
    image_text_ranks,
    image_text_recall,
    instance_recall,
    negatives,
    reid_ranking,
    reranking,
)
from gssf_plug.evaluation.scores import features


def exact_scores(queries, gallery):
    """Squares of cosines with their sign, as fractions: they rank as cosines do, and equal means equal."""
    rows, items = ([[Fraction(x) for x in row] for row in side.double().tolist()] for side in (queries, gallery))
    table = []
    for row in rows:
        scores = []
        for item in items:
            product = sum(a * b for a, b in zip(row, item, strict=True))
            norms = sum(a * a for a in row) * sum(b * b for b in item)
            scores.append(product * abs(product) / norms if norms else Fraction(0))
        table.append(scores)
    return table


def rounded_scores(queries, gallery):
    """Cosines in float64 from correctly rounded sums: what is compared where they differ by less than float64 tells."""
    rows, items = queries.double().tolist(), gallery.double().tolist()
    squares = [math.fsum(b * b for b in item) for item in items]
    table = []
    for row in rows:
        products = [math.fsum(a * b for a, b in zip(row, item, strict=True)) for item in items]
        square = math.fsum(a * a for a in row)
        table.append([math.sqrt(c * c / (square * n)) for c, n in zip(products, squares, strict=True)])
    return table


def places(table):
    """Scores as whole numbers in the same order, each row by itself."""
    return np.array([[sorted(set(row)).index(score) for score in row] for row in table], dtype=float)


def test_chunks_of_more_scores_than_are_counted_at_once(monkeypatch):
    """As with millions of items: pieces then are single rows, not none."""
    features, labels = torch.randn(40, 6), torch.arange(40) // 4
    cameras = torch.arange(40) % 4

    def measures():
        nearly_equal = 1 + 1e-9 * features.double()
        return (
            reid_ranking(features, features, labels, labels, cameras, cameras),
            reid_ranking(nearly_equal, nearly_equal, labels, labels, cameras, cameras, rerank=KReciprocal(k1=5, k2=2)),
            reid_ranking(nearly_equal, nearly_equal, labels, labels, cameras, cameras),
            image_text_recall(features[::4], features, labels),
        )

    right = measures()
    for module, name in (
        (counting, "COUNTED_AT_ONCE"),
        (negatives, "FINEST_AT_ONCE"),
        (image_text_ranks, "LOOKED_AT_ONCE"),
        (reranking, "CACHED"),
        (reranking, "AT_ONCE"),
    ):
        monkeypatch.setattr(module, name, 1)
    assert measures() == right


def whole_numbers(generator, rows, dim=6):
    return torch.randint(-2, 3, (rows, dim), generator=generator).float()


def signs(generator, rows, dim=32):
    return torch.randint(2, (rows, dim), generator=generator).float() * 2 - 1


def copies(generator, rows, dim=8):
    few = torch.randn(max(2, rows // 6), dim, generator=generator)
    return few[torch.randint(len(few), (rows,), generator=generator)]


def nearly_equal(generator, rows, dim=8):
    """One direction and the next floats to it: float32 products cannot tell them apart."""
    steps = torch.randint(-1, 2, (rows, dim), generator=generator)
    return torch.nextafter(torch.ones(rows, dim), torch.ones(rows, dim) + steps)


def zeros_of_both_signs(generator, rows, dim=6):
    features = whole_numbers(generator, rows, dim)
    return torch.where(torch.rand(rows, dim, generator=generator) < 0.5, features, features * -0.0)


def subnormal(generator, rows, dim=6):
    return whole_numbers(generator, rows, dim) * 2.0**-149


def huge(generator, rows, dim=6):
    return whole_numbers(generator, rows, dim) * 2.0**120


KINDS = [whole_numbers, signs, copies, nearly_equal, zeros_of_both_signs, subnormal, huge]


def sorted_ranks(scores, relevant, kept):
    """Ranks of the relevant among the kept, the relevant last among equals."""
    order = [item for item in np.lexsort((relevant, -scores)) if kept[item]]
    return np.nonzero(relevant[order])[0] + 1


def reference(scores, relevant, kept):
    """MAP and R@1 in %, means over the queries that have a relevant item."""
    measured = []
    for row, mine, here in zip(scores, relevant, kept, strict=True):
        ranks = sorted_ranks(row, mine & here, here)
        if len(ranks):
            measured.append((np.mean(np.arange(1, len(ranks) + 1) / ranks), ranks[0] == 1))
    return 100 * np.mean(measured, axis=0)


@pytest.mark.parametrize("kind", KINDS)
def test_ties_are_decided_as_sorting_exact_scores_does(kind, monkeypatch, two_threads):
    generator = torch.Generator().manual_seed(1)
    queries, gallery = kind(generator, 24), kind(generator, 60)
    relevant = torch.rand(24, 60, generator=generator) < 0.1
    ids, gallery_ids = (torch.randint(5, (count,), generator=generator) for count in (24, 60))
    cameras, gallery_cameras = (torch.randint(2, (count,), generator=generator) for count in (24, 60))
    table = (rounded_scores if kind is nearly_equal else exact_scores)(queries, gallery)
    scores, everything = places(table), np.ones((24, 60), dtype=bool)
    same = ids[:, None].numpy() == gallery_ids.numpy()
    other = ~(same & (cameras[:, None].numpy() == gallery_cameras.numpy()))
    sum_exactly(monkeypatch)
    for chunk, pieces, many in ((None, 2_097_152, 512), (7, 130, 512), (None, 2_097_152, 1), (7, 130, 1)):
        monkeypatch.setattr(features, "MANY_QUERIES", many)  # from there on by two digits
        monkeypatch.setattr(features, "MANY_PAIRS", 1)
        monkeypatch.setattr(features, "multiplies_int8", lambda: True)
        monkeypatch.setattr(counting, "COUNTED_AT_ONCE", pieces)
        monkeypatch.setattr(negatives, "FINEST_AT_ONCE", pieces)
        found = document_ranking(queries, gallery, relevant, ks=(1,), query_chunk=chunk)
        right = reference(scores, relevant.numpy(), everything)
        assert [found["mAP"], found["accuracy@1"]] == pytest.approx(right, abs=1e-9)
        sides = (queries, gallery, ids, gallery_ids, cameras, gallery_cameras)
        found = reid_ranking(*sides, ranks=(1,), query_chunk=chunk)
        assert [found["mAP"], found["R@1"]] == pytest.approx(reference(scores, same, other), abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_no_chunk_thread_or_dtype_changes_a_result(kind, monkeypatch):
    generator = torch.Generator().manual_seed(2)
    features = kind(generator, 60)
    labels = torch.randint(12, (60,), generator=generator)
    metric = GSSFMetric(features.shape[1], block_size=2)
    with torch.no_grad():
        for parameter in metric.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    for similarity in (None, metric):
        right = instance_recall(features, labels, metric=similarity)
        threads = torch.get_num_threads()
        for chunk in (13, 59):
            assert instance_recall(features, labels, metric=similarity, query_chunk=chunk) == pytest.approx(
                right, abs=1e-9
            )
        torch.set_num_threads(2 if threads == 1 else 1)
        try:
            assert instance_recall(features, labels, metric=similarity) == right
        finally:
            torch.set_num_threads(threads)
        assert instance_recall(features.double(), labels, metric=similarity) == right
        if torch.equal(features.bfloat16().float(), features):
            assert instance_recall(features.bfloat16(), labels, metric=similarity) == right


@pytest.mark.parametrize("has_instructions", [True, False])
def test_two_digits_are_for_many_queries_under_a_metric_that_normalises(has_instructions, monkeypatch):
    monkeypatch.setattr(features, "multiplies_int8", lambda: has_instructions)
    queries, gallery = torch.randn(1600, 4), torch.randn(12000, 4)
    chunks = [slice(0, 800), slice(800, 1600)]

    def dtype(items, mine, metric=None):
        return features.counted_scores(metric, queries, gallery[:items], mine).dtype

    assert dtype(12000, chunks) == (torch.int8 if has_instructions else torch.float32)
    assert dtype(12000, chunks[:1]) == torch.float32  # the other half is another process's
    assert dtype(9000, chunks) == torch.float32
    assert features.counted_scores(None, queries[:, :1], gallery[:, :1], chunks).dtype == torch.float32
    assert dtype(12000, chunks, GSSFMetric(4, block_size=2, normalize=False)) == torch.float32


def test_a_sample_is_asked_once_and_only_by_what_is_still_to_be_tried(monkeypatch):
    sum_exactly(monkeypatch)
    queries, gallery = torch.randn(30, 16), torch.randn(900, 16)
    whole = slice(0, 900)
    assert features.FeatureScores(None, queries, gallery).of(slice(0, 30)).sampled(whole, slice(0, 9), 7) is None
    scores = features.FeatureScores(None, queries, gallery, torch.int8).of(slice(0, 30))
    part = scores.sampled(slice(100, 900), slice(3, 9), 7)
    rows, items = torch.cartesian_prod(torch.arange(6), torch.arange(115)).T
    between = part.between(rows, part.fast[rows, items])
    right = scores.canonical(rows + 3, 100 + 7 * items)
    assert bool(((between.low <= right) & (right <= between.high)).all())
    scores.side_by_side(whole)
    assert scores.sampled(whole, slice(3, 9), 7) is None


def test_parts_of_a_large_gallery_add_up(monkeypatch):
    generator = torch.Generator().manual_seed(3)
    queries, gallery = signs(generator, 20), signs(generator, 300)
    grades = torch.randint(4, (20, 300), generator=generator) * (torch.rand(20, 300, generator=generator) < 0.1)
    right = document_ranking(queries, gallery, grades)
    monkeypatch.setattr("gssf_plug.evaluation.scores.features.PART_ENTRIES", 32 * 70)
    assert document_ranking(queries, gallery, grades) == right
    assert document_ranking(queries, gallery, grades, query_chunk=3) == pytest.approx(right, abs=1e-9)


def test_an_exact_duplicate_beats_the_positive():
    generator = torch.Generator().manual_seed(4)
    for seed in range(100):
        generator.manual_seed(seed)
        query, gallery = torch.randn(1, 100, generator=generator), torch.randn(9, 100, generator=generator)
        gallery[7] = gallery[2]  # the positive, and a negative that equals it
        closer = float((torch.nn.functional.normalize(gallery) @ torch.nn.functional.normalize(query).T)[2])
        ids, none = torch.tensor([5]), torch.zeros(9, dtype=torch.long)
        gallery_ids = none.index_fill(0, torch.tensor([2]), 5)
        found = reid_ranking(query, gallery, ids, gallery_ids, torch.ones(1).long(), none)
        scores = [
            math.fsum(a * b for a, b in zip(query[0].double().tolist(), row, strict=True))
            for row in torch.nn.functional.normalize(gallery.double()).tolist()
        ]
        above = sum(score > scores[2] for place, score in enumerate(scores) if place not in (2, 7))
        assert found["mAP"] == pytest.approx(100 / (above + 2)), closer


def test_a_collapsed_encoder_is_ranked_last_and_soon():
    """All pairs tie: they are recognised as copies, not scored one by one."""
    labels = torch.arange(1200) % 100
    found = instance_recall(torch.ones(1200, 16), labels, ks=(1, 1188, 1189))
    assert (found["R@1"], found["R@1188"], found["R@1189"]) == (0, 0, 100)


def test_instructions_without_bfloat16_give_the_same(tmp_path):
    """Where oneDNN does not multiply short floats by instructions, float32 comes first: slower by nothing else."""
    less = {"ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_NUM_THREADS": "1"}
    done = run("workers.ranking_results", cwd=Path(__file__).parents[2], environment=less)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.pop("dtype") == "torch.float32"
    right = json.loads(json.dumps(ranking_results.results()))
    assert found == right
