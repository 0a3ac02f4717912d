"""fit_metric as a user calls it: numpy or torch, every form of pairs, honest where nothing is to be gained."""

import os
import signal
import threading
import warnings

import numpy as np
import pytest
import scipy.sparse
import torch
from datasets import Dataset
from retrieval.fitting.noisy_channels import noisy_channels

from gssf_plug import GSSFMetric
from gssf_plug.errors import ArgumentError
from gssf_plug.evaluation import document_ranking
from gssf_plug.losses import BatchHardTriplet, IdentityLoss
from gssf_plug.retrieval import fit_metric

QUICK = {"progress": False, "max_epochs": 20, "structures": [{"terms": ("diagonal",)}], "loss": "softmax"}


def test_it_beats_cosine_on_queries_it_has_not_seen():
    queries, documents, pairs = noisy_channels(800)
    result = fit_metric(queries[:600], documents, pairs[:600], progress=False, max_epochs=20)
    held = (queries[600:], documents, _numbered(pairs[600:]))
    ours, cosine = (document_ranking(*held, each) for each in (result.metric, None))
    assert ours["mAP"] > cosine["mAP"] + 10
    assert result.taken != "cosine"
    assert result.table[0].name == "cosine"
    assert "over cosine" in result.reason
    assert result.table[1].name == "cosine, whitened by pairs"
    assert not result.table[1].metric


def _numbered(pairs):
    return torch.stack([torch.arange(len(pairs)), pairs[:, 1]], dim=1)


def test_the_taken_row_is_what_the_metric_measures():
    queries, documents, pairs = noisy_channels(700)
    held = (queries[500:], documents, _numbered(pairs[500:]))
    result = fit_metric(queries[:500], documents, pairs[:500], validation=held, **QUICK)
    row = next(row for row in result.table if row.name == result.taken)
    assert row.value == pytest.approx(document_ranking(*held, result.metric)["mAP"], abs=1e-3)
    assert result.table[0].value == pytest.approx(document_ranking(*held)["mAP"], abs=1e-3)
    assert row.gain == pytest.approx(row.value - result.table[0].value, abs=1e-6)


@pytest.mark.parametrize("measure", ["mAP", "recall@3", "accuracy@1", "precision@5", "mrr@10", "ndcg@10", "map@100"])
def test_any_measure_decides(measure):
    queries, documents, pairs = noisy_channels(300)
    held = (queries[200:], documents, _numbered(pairs[200:]))
    result = fit_metric(queries[:200], documents, pairs[:200], validation=held, measure=measure, **QUICK)
    ks = (int(measure.split("@")[1]),) if "@" in measure else (1,)
    expected = document_ranking(*held, None, ks)[measure]
    assert result.table[0].value == pytest.approx(expected, abs=1e-3)
    assert measure in str(result)


def test_nothing_to_gain_gives_cosine_back():
    generator = torch.Generator().manual_seed(0)
    documents = torch.randn(120, 16, generator=generator)
    queries = torch.randn(120, 16, generator=generator)  # pairs are arbitrary: nothing can be learned
    result = fit_metric(queries, documents, torch.arange(120)[:, None].repeat(1, 2), **{**QUICK, "loss": None})
    assert result.taken == "cosine"
    assert "neutral metric" in result.reason
    assert float(result.metric.penalty().detach()) == 0
    assert torch.allclose(result.metric(queries, documents), GSSFMetric(16)(queries, documents))


def test_forms_of_pairs_and_features_agree():
    queries, documents, pairs = noisy_channels()
    lists = [[int(item)] for item in pairs[:, 1]]
    tuples = [(int(query), int(item)) for query, item in pairs]
    matrix = torch.zeros(500, 200, dtype=torch.bool)
    matrix[pairs[:, 0], pairs[:, 1]] = True
    expected = fit_metric(queries, documents, pairs, **QUICK)
    assert len(tuples) == len(queries)  # as many pairs as queries: each entry is a pair, never the documents of a query
    for form in (
        pairs.numpy(),
        tuples,
        lists,
        matrix,
        matrix.numpy(),
        scipy.sparse.csr_matrix(matrix),
        matrix.to_sparse(),
    ):
        found = fit_metric(queries.numpy(), documents.numpy(), form, **QUICK)
        assert torch.equal(found.metric.matrix(), expected.metric.matrix())


def test_same_seed_same_result_and_the_callers_random_state_is_left_alone():
    queries, documents, pairs = noisy_channels()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = fit_metric(queries, documents, pairs, seed=1, **QUICK)
    assert torch.equal(torch.get_rng_state(), state)
    second = fit_metric(queries, documents, pairs, seed=1, **QUICK)
    assert torch.equal(first.metric.matrix(), second.metric.matrix())
    assert [row.value for row in first.table] == [row.value for row in second.table]
    other = fit_metric(queries, documents, pairs, seed=2, **QUICK)
    assert not torch.equal(first.metric.matrix(), other.metric.matrix())


@pytest.mark.parametrize("dim", [6, 13, 37, 96, 131])
def test_any_width(dim):
    queries, documents, pairs = noisy_channels(dim=dim)
    result = fit_metric(queries, documents, pairs, progress=False, max_epochs=5, loss="softmax")
    names = [row.name for row in result.table]
    assert {"diagonal", "dense"} <= {*names}
    assert result.metric.dim == dim
    assert ("blocks of 64 and 3" in names) == (dim == 131)


def test_half_precision_and_memory_maps(tmp_path):
    queries, documents, pairs = noisy_channels()
    np.save(tmp_path / "documents.npy", documents.half().numpy())
    mapped = np.load(tmp_path / "documents.npy", mmap_mode="r")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = fit_metric(queries.half(), mapped, pairs, **QUICK)
    assert found.metric.matrix().dtype == torch.float32
    assert found.table[-1].gain > 5


def test_one_list_of_items_is_never_compared_with_itself():
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(60, 12, generator=generator).repeat_interleave(4, 0)
    told = torch.arange(12) % 3 == 0
    noise = torch.randn(2, 240, 12, generator=generator)
    items = torch.where(told, centres + 0.2 * noise[0], noise[1])
    same = torch.arange(240)[:, None] // 4 == torch.arange(240) // 4
    result = fit_metric(items, items.clone(), same, **QUICK)
    matrix = result.metric.matrix()
    assert torch.equal(matrix, matrix.T)
    assert result.table[0].value < 90, "an item that finds itself would make cosine perfect"
    assert result.table[-1].beyond


def test_ignored_pairs_are_neither_right_nor_wrong():
    queries, documents, pairs = noisy_channels()
    doubled = torch.cat([documents, documents])  # copies that nobody calls relevant lose every tie
    copies = torch.stack([pairs[:, 0], pairs[:, 1] + 200], dim=1)
    hurt = fit_metric(queries, doubled, pairs, **QUICK)
    spared = fit_metric(queries, doubled, pairs, ignored=copies, **QUICK)
    assert spared.table[0].value > hurt.table[0].value + 2
    assert spared.table[-1].value > hurt.table[-1].value + 3


def test_test_set_is_measured_once_with_both():
    queries, documents, pairs = noisy_channels(500)
    result = fit_metric(
        queries[:300], documents, pairs[:300], test=(queries[300:], documents, _numbered(pairs[300:])), **QUICK
    )
    expected = document_ranking(queries[300:], documents, _numbered(pairs[300:]), result.metric)["mAP"]
    assert result.test is not None
    assert result.test[result.taken] == pytest.approx(expected, abs=1e-3)
    assert set(result.test) == {"cosine", result.taken}


def test_lists_are_read_as_arrays():
    queries, documents, pairs = noisy_channels(60)
    fits = [
        fit_metric(*given, pairs, **QUICK) for given in ((queries, documents), (queries.tolist(), documents.tolist()))
    ]
    assert torch.equal(fits[0].metric.matrix(), fits[1].metric.matrix())
    rows, linked = documents.tolist(), [(item, item + 1) for item in range(0, 200, 2)]
    one_list = [fit_metric(rows, other, linked, **QUICK) for other in (rows, documents.tolist())]
    assert torch.equal(one_list[0].metric.matrix(), one_list[1].metric.matrix())


@pytest.mark.bad_input  # as to their annotations
def test_columns_of_a_data_set_are_read_as_arrays():
    queries, documents, pairs = noisy_channels(60)
    asked = Dataset.from_dict({"vector": queries.numpy()})
    held = Dataset.from_dict({"vector": documents.numpy()}).with_format("torch")
    wanted = fit_metric(queries, documents, pairs, **QUICK)
    assert torch.equal(
        fit_metric(asked["vector"], held["vector"], pairs, **QUICK).metric.matrix(), wanted.metric.matrix()
    )
    linked = [(item, item + 1) for item in range(0, 200, 2)]
    one_list = fit_metric(held["vector"], held["vector"], linked, **QUICK)  # two objects, and one list of items
    assert torch.equal(one_list.metric.matrix(), fit_metric(documents, documents, linked, **QUICK).metric.matrix())


def test_few_queries_are_measured_fold_by_fold():
    queries, documents, pairs = noisy_channels(60)
    result = fit_metric(queries, documents, pairs, progress=False, loss="softmax")
    assert result.queries == 60
    assert "60 validation queries among 200 documents, in 5 folds" in str(result)
    assert result.table[0].value == pytest.approx(document_ranking(queries, documents, pairs)["mAP"], abs=1e-3)
    assert result.taken != "cosine"


def test_ctrl_c_returns_the_best_so_far():
    queries, documents, pairs = noisy_channels()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores Ctrl-C
    try:
        timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        result = fit_metric(queries, documents, pairs, max_epochs=100_000, patience=100_000, progress=False)
        timer.cancel()
    finally:
        signal.signal(signal.SIGINT, before)
    assert result.interrupted
    assert "Interrupted" in str(result)
    assert result.table[0].name == "cosine"
    assert result.metric(queries[:2], documents[:3]).shape == (2, 3)


def test_a_loss_of_ones_own_and_structures_of_ones_own():
    queries, documents, pairs = noisy_channels()
    own = {"loss": BatchHardTriplet(), "structures": [{"block_size": 8}, {"terms": ("dense",)}]}
    result = fit_metric(queries, documents, pairs, progress=False, max_epochs=5, **own)
    assert [row.name for row in result.table[3:]] == ["block_size=8", "terms=dense"]


def test_report_and_plot(tmp_path):
    queries, documents, pairs = noisy_channels()
    result = fit_metric(queries, documents, pairs, **QUICK)
    lines = str(result).splitlines()
    assert lines[0].startswith("| similarity | parameters | mAP |")
    assert lines[2].startswith("| cosine | 0 |")
    assert sum("taken" in line for line in lines if line.startswith("|")) == 1
    result.plot().savefig(tmp_path / "fit.png")
    assert (tmp_path / "fit.png").stat().st_size > 10_000
    result.metric.save_pretrained(tmp_path / "metric")
    assert torch.equal(GSSFMetric.from_pretrained(tmp_path / "metric").matrix(), result.metric.matrix())


def _broken(**changed):
    queries, documents, pairs = noisy_channels()
    given = {"queries": queries, "documents": documents, "pairs": pairs, **QUICK, **changed}
    return fit_metric(given.pop("queries"), given.pop("documents"), given.pop("pairs"), **given)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"pairs": torch.tensor([[0, 200]])}, "200"),
        ({"pairs": torch.zeros(0, 2, dtype=torch.long)}, "pairs.*pair"),
        ({"documents": torch.randn(10, 5)}, "documents.*24 channels"),
        ({"queries": torch.full((500, 24), float("nan"))}, "NaN or infinity in row 0"),
        ({"queries": torch.zeros(500, 24, dtype=torch.long)}, "floating-point"),
        ({"validation": 1.5}, "between 0 and 1"),
        ({"validation": (1, 2)}, "validation.*2 values"),
        ({"measure": "map"}, "mAP"),
        ({"structures": "all"}, "structures.*auto"),
        ({"structures": []}, "at least one"),
        ({"structures": [{"blocks": 3}]}, "options of GSSFMetric"),
        ({"structures": [{"block_size": 7}]}, "divide"),
        ({"loss": "triplet"}, "loss.*softmax"),
        ({"loss": IdentityLoss(24, 3)}, "loss.*called as"),
        ({"loss": torch.nn.CrossEntropyLoss()}, "loss.*called as"),
        ({"patience": 0}, "patience"),
        ({"batch_size": 2.5}, "batch_size"),
    ],
)
def test_bad_input_is_named(changed, text):
    with pytest.raises(ArgumentError, match=text):
        _broken(**changed)
