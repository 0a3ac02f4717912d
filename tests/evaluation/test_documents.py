"""Document ranking beside a loop that sorts, sentence-transformers' evaluator, and every form of relevance."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from gssf_plug import GSSFMetric
from gssf_plug.errors import ArgumentError
from gssf_plug.evaluation import document_ranking

RANX = {"accuracy": "hit_rate", "precision": "precision", "recall": "recall"}


def reference(scores, grades, ks=(1, 10)):
    """Every query sorted by itself, lower grades first among equals; scores and grades N×M in float64."""
    measured = []
    for row, worth in zip(scores.detach().double().numpy(), grades.double().numpy(), strict=True):
        if not (worth > 0).any():
            continue
        gains = worth[np.lexsort((worth, -row))].clip(min=0)
        hits, relevant = gains > 0, (worth > 0).sum()
        ranks = np.nonzero(hits)[0] + 1
        precision = np.arange(1, relevant + 1) / ranks
        discount = 1 / np.log2(np.arange(len(gains)) + 2)
        best = np.sort(gains)[::-1]
        measured.append(
            {f"accuracy@{k}": hits[:k].any() for k in ks}
            | {f"precision@{k}": hits[:k].sum() / k for k in ks}
            | {f"recall@{k}": hits[:k].sum() / relevant for k in ks}
            | {"ndcg@10": (gains * discount)[:10].sum() / (best * discount)[:10].sum()}
            | {"mrr@10": 1 / ranks[0] if ranks[0] <= 10 else 0}
            | {"map@100": precision[ranks <= 100].sum() / min(relevant, 100), "mAP": precision.mean()}
        )
    return {name: 100 * np.mean([query[name] for query in measured]) for name in measured[0]}


def perturbed(dim):
    metric = GSSFMetric(dim, block_size=4)
    with torch.no_grad():
        for parameter in metric.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return metric


def corpus(queries=30, documents=250, dim=8, share=0.05, most=3):
    """Random features, and grades 0 … most; some queries have nothing relevant, one has more than 100 documents."""
    grades = torch.randint(1, most + 1, (queries, documents)) * (torch.rand(queries, documents) < share)
    grades[:3] = 0
    grades[3, :150] = 1
    return torch.randn(queries, dim), torch.randn(documents, dim), grades


def as_lists(grades):
    return [row.nonzero()[:, 0].tolist() for row in grades]


@pytest.mark.parametrize("query_chunk", [None, 7, 1])
@pytest.mark.parametrize("most", [1, 4])
def test_equals_sorting(query_chunk, most):
    queries, documents, grades = corpus(most=most)
    metric = perturbed(8)
    got = document_ranking(queries, documents, grades, metric, ks=(1, 5, 300), query_chunk=query_chunk)
    right = reference(metric(queries, documents), grades, ks=(1, 5, 300))
    assert list(got) == list(right)
    assert got == pytest.approx(right, abs=1e-10)


def test_ties_are_lost_by_the_relevant_and_by_the_higher_grade():
    queries, documents, grades = corpus(most=4)
    queries, documents = (
        queries[:, :4].sign(),
        documents[:, :4].sign(),
    )  # norm 2: scores are exact, and most of them tie
    assert document_ranking(queries, documents, grades) == pytest.approx(reference(queries @ documents.T / 4, grades))
    collapsed = document_ranking(torch.ones(2, 4), torch.ones(50, 4), [{0: 1.0, 1: 3.0}, [7]], ks=(10,))
    assert collapsed["recall@10"] == 0
    assert document_ranking(torch.ones(1, 4), torch.ones(2, 4), [{0: 1.0, 1: 3.0}])["ndcg@10"] < 100


def test_numpy_lists_and_half_precision_are_taken():
    queries, documents, grades = corpus()
    right = document_ranking(queries, documents, grades)
    assert document_ranking(queries.numpy(), documents.double().numpy(), grades) == pytest.approx(right)
    assert document_ranking(queries.double().tolist(), documents.double().tolist(), grades) == pytest.approx(right)
    half = document_ranking(queries.half(), documents.half(), grades)
    assert document_ranking(queries.half().numpy(), documents.half().numpy(), grades) == half


def test_a_memory_map_that_may_only_be_read(tmp_path):
    queries, documents, grades = corpus()
    np.save(tmp_path / "documents.npy", documents.numpy())
    mapped = np.load(tmp_path / "documents.npy", mmap_mode="r")
    assert document_ranking(queries, mapped, grades) == document_ranking(queries, documents, grades)


def test_places_may_come_from_a_generator_and_from_numpy():
    queries, documents, grades = corpus()
    right = document_ranking(queries, documents, grades, ks=(1, 2))
    assert document_ranking(queries, documents, grades, ks=(k for k in (1, 2))) == right
    assert document_ranking(queries, documents, grades, ks=np.array([1, 2])) == right


def test_the_default_dtype_changes_nothing():
    queries, documents, grades = corpus()
    right = document_ranking(queries, documents, grades)
    torch.set_default_dtype(torch.float16)
    try:
        assert document_ranking(queries, documents, grades) == right
    finally:
        torch.set_default_dtype(torch.float32)


def test_equals_the_evaluator_of_sentence_transformers():
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    queries, documents, grades = corpus(most=1)
    scores = normalize(queries) @ normalize(documents).T
    assert all(len(row.unique()) == len(row) for row in scores)
    evaluator = InformationRetrievalEvaluator(
        {str(query): "" for query in range(len(queries))},
        {str(document): "" for document in range(len(documents))},
        {str(query): set(map(str, own)) for query, own in enumerate(as_lists(grades))},
        accuracy_at_k=[1, 10],
        precision_recall_at_k=[1, 10],
        ndcg_at_k=[10],
        mrr_at_k=[10],
        map_at_k=[100],
        score_functions={"cosine": lambda x, y: normalize(x) @ normalize(y).T},
        write_csv=False,
    )
    kept = torch.tensor([bool(own) for own in as_lists(grades)])
    evaluator.embed_inputs = lambda *_, **__: queries[kept]  # it drops queries without a relevant document
    theirs = evaluator.compute_all_metrics(None, corpus_embeddings=documents)["cosine"]
    got = document_ranking(queries, documents, grades)
    assert len(got) == 10
    for name in got.keys() - {"mAP"}:
        measure, _, k = name.partition("@")
        assert got[name] == pytest.approx(100 * theirs[f"{measure}@k"][int(k)], abs=1e-4), name


def test_mean_average_precision_equals_scikit_learn():
    from sklearn.metrics import average_precision_score, ndcg_score

    queries, documents, grades = corpus(most=4)
    scores = (normalize(queries) @ normalize(documents).T).numpy()
    kept = [query for query, row in enumerate(grades) if bool(row.any())]
    got = document_ranking(queries, documents, grades)
    right = np.mean([average_precision_score(grades[query] > 0, scores[query]) for query in kept])
    assert got["mAP"] == pytest.approx(100 * right, abs=1e-5)
    assert got["ndcg@10"] == pytest.approx(100 * ndcg_score(grades[kept], scores[kept], k=10), abs=1e-5)


def judged(most=4):
    """A graded corpus, and it as TREC's tools take it: {query: {document: grade}} and {query: {document: score}}."""
    queries, documents, grades = corpus(most=most)
    grades[3, 90:] = 0  # beyond 100 relevant documents the definitions of map@100 differ
    scores = normalize(queries.double()) @ normalize(documents.double()).T
    assert all(len(row.unique()) == len(row) for row in scores.float())  # trec_eval reads float32
    kept = [query for query, row in enumerate(grades) if bool(row.any())]
    judgements = {f"q{query}": {f"d{place}": int(grades[query, place]) for place in range(250)} for query in kept}
    run = {f"q{query}": {f"d{place}": float(scores[query, place]) for place in range(250)} for query in kept}
    return document_ranking(queries, documents, grades), judgements, run


def test_equals_trec_eval():
    pytrec_eval = pytest.importorskip("pytrec_eval")
    got, judgements, run = judged()
    asked = {"map", "map_cut.100", "ndcg_cut.10", "recip_rank", "P.1,10", "recall.1,10", "success.1,10"}
    by_query = pytrec_eval.RelevanceEvaluator(judgements, asked).evaluate(run).values()
    theirs = {name: 100 * np.mean([query[name] for query in by_query]) for name in next(iter(by_query))}
    for ours, trec in {"accuracy": "success", "precision": "P", "recall": "recall"}.items():
        for k in (1, 10):
            assert got[f"{ours}@{k}"] == pytest.approx(theirs[f"{trec}_{k}"], abs=1e-9), (ours, k)
    assert got["ndcg@10"] == pytest.approx(theirs["ndcg_cut_10"], abs=1e-9)
    assert got["map@100"] == pytest.approx(theirs["map_cut_100"], abs=1e-9)
    assert got["mAP"] == pytest.approx(theirs["map"], abs=1e-9)
    reciprocal = np.array([query["recip_rank"] for query in by_query])
    assert got["mrr@10"] == pytest.approx(100 * np.mean(reciprocal * (reciprocal > 1 / 10.5)), abs=1e-9)


def test_equals_ir_measures():
    ir_measures = pytest.importorskip("ir_measures")
    from ir_measures import AP, P, R, Success, nDCG

    got, judgements, run = judged()
    pairs = {"mAP": AP, "map@100": AP @ 100, "ndcg@10": nDCG @ 10}
    pairs |= {
        f"{name}@{k}": m @ k for name, m in (("accuracy", Success), ("precision", P), ("recall", R)) for k in (1, 10)
    }
    theirs = ir_measures.calc_aggregate(list(pairs.values()), judgements, run)
    for name, measure in pairs.items():
        assert got[name] == pytest.approx(100 * theirs[measure], abs=1e-9), name


@pytest.mark.filterwarnings("ignore")  # numba's, about its own typed lists
def test_equals_ranx():
    ranx = pytest.importorskip("ranx")
    got, judgements, run = judged()
    pairs = {"mAP": "map", "map@100": "map@100", "ndcg@10": "ndcg@10", "mrr@10": "mrr@10"}
    pairs |= {f"{ours}@{k}": f"{theirs}@{k}" for ours, theirs in RANX.items() for k in (1, 10)}
    theirs = ranx.evaluate(ranx.Qrels(judgements), ranx.Run(run), list(pairs.values()))
    for name, measure in pairs.items():
        assert got[name] == pytest.approx(100 * theirs[measure], abs=1e-9), name


def test_map_at_100_divides_by_at_most_100():
    got = document_ranking(torch.eye(2)[:1], torch.eye(2)[[0] * 150 + [1]], [list(range(150))])
    assert got["map@100"] == 100
    assert math.isclose(got["mAP"], 100)


@pytest.mark.bad_input
class TestBadInput:
    def refuses(self, match, relevant=((0,), (1,), (2,)), **options):
        with pytest.raises(ArgumentError, match=match):
            document_ranking(torch.randn(3, 4), torch.randn(5, 4), relevant, **options)

    def test_nothing_relevant(self):
        self.refuses("`relevant` must give some query a positive, but got no document", relevant=[[], [], []])
        self.refuses("`relevant` must give some query a positive", relevant=torch.zeros(3, 5))

    def test_places(self):
        self.refuses("`ks` must hold at least one place from 1", ks=())
        self.refuses("`ks` must hold at least one place from 1", ks=(0,))
        self.refuses("`ks` must hold at least one place from 1", ks=(1.5,))
        self.refuses("`ks` must hold at least one place from 1, but got 3", ks=3)

    def test_relevance(self):
        self.refuses("`relevant` must say which documents answer which query, but got dict", relevant={0: [1]})

    def test_features(self):
        with pytest.raises(ArgumentError, match="`documents` must have the other side's 4 channels"):
            document_ranking(torch.randn(3, 4), torch.randn(5, 8), [[0], [1], [2]])
        with pytest.raises(ArgumentError, match="`queries` must be a floating-point matrix of features N×D"):
            document_ranking(np.ones((3, 4), dtype=int), torch.randn(5, 4), [[0], [1], [2]])
