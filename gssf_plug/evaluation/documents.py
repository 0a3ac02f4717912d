r"""Document retrieval: queries against one corpus of shared documents, several of them relevant, graded where given.

    accuracy@k = [rank_1 <= k]     precision@k = #{i: rank_i <= k} / k     recall@k = #{i: rank_i <= k} / R
    mrr@10     = 1 / rank_1 where rank_1 <= 10, else 0
    map@100    = Σ_{i: rank_i <= 100} (i / rank_i) / min(R, 100)           mAP = (1/R) Σ_i i / rank_i
    ndcg@10    = DCG / DCG of the best order,   DCG = Σ_{i: rank_i <= 10} grade_i / log2(rank_i + 1)

rank_i is the place of the i-th best of a query's R relevant documents in the whole corpus. The definitions are those
of sentence-transformers' `InformationRetrievalEvaluator`, here in %; trec_eval's agree but for map@100, which it
divides by R also where R > 100. A tie is lost by the relevant document; of equal relevant ones the lower grade comes
first.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gssf_plug.distributed import share
from gssf_plug.evaluation.options import (
    Rows,
    checked_features,
    checked_metric,
)
from gssf_plug.evaluation.positives import Matches
from gssf_plug.evaluation.ranking import Ranked, Tally, checked_ranks, query_blocks, query_chunks, rank_positives
from gssf_plug.evaluation.relevance import read_relevance
from gssf_plug.evaluation.scores import FeatureScores
from gssf_plug.metric import GSSFMetric
from gssf_plug.metric.exact.plain_tensors import on_plain_tensors

__all__ = ["document_ranking", "ranked_measures"]

NDCG_AT, MRR_AT, MAP_AT = 10, 10, 100


@on_plain_tensors
def document_ranking(
    queries: Float[Tensor | np.ndarray, "n dim"] | Rows,
    documents: Float[Tensor | np.ndarray, "m dim"] | Rows,
    relevant: Any,
    metric: GSSFMetric | None = None,
    ks: Iterable[int] = (1, 10),
    *,
    query_chunk: int | None = None,
    distributed: bool = False,
) -> dict[str, float]:
    """Measures of queries that search the whole corpus, in %, exactly.

    Args:
        queries: N×D features, the metric's query side; torch tensors, numpy arrays or lists.
        documents: M×D features of the corpus, shared by all queries.
        relevant: which documents answer which query: (P, 2) index pairs, as an array or as a list of tuples (query,
            document); a boolean matrix N×M, dense or sparse (torch, scipy); one list of document numbers per query.
            Graded: a numeric matrix N×M, or one mapping {document number: grade} per query. A grade above 0 marks a
            relevant document, and only ndcg@10 reads more of it than that.
        metric: the similarity; None (default) means cosine.
        ks: the places k of accuracy@k, precision@k and recall@k; default 1 and 10.
        query_chunk: queries ranked at once; default as many as 32 MB of scores hold, at most 2,048.
        distributed: share the queries among the processes, all of which call with the same arguments.

    Returns:
        "accuracy@k", "precision@k", "recall@k" of each k, "ndcg@10", "mrr@10", "map@100" and "mAP", in %: means over
        the queries that have a relevant document, the others are left out.

    Raises:
        ArgumentError: an empty side, widths that differ, NaN in features or metric, `relevant` of another form or
            with numbers outside the rows, no query with a relevant document.

    Example:
        >>> queries, documents = torch.eye(2), torch.eye(4)[:, :2]
        >>> document_ranking(queries, documents, [[0], [1]], ks=(1,))["mAP"]
        100.0
    """
    queries = checked_features("queries", queries, metric)
    documents = checked_features("documents", documents, metric, queries.shape[1])
    places = checked_ranks("ks", ks)
    pairs = read_relevance("relevant", relevant, len(queries), len(documents))
    metric = checked_metric(metric, queries)
    scores, tally = FeatureScores(metric, queries, documents), Tally()
    chunks = share(query_chunks(len(queries), len(documents), query_chunk), distributed)
    matched = torch.bincount(pairs.rows, minlength=len(queries))
    for block, at_once in query_blocks(chunks, matched, queries.shape[1]):
        rows, columns, grades = (part.to(queries.device) for part in pairs.of(block))
        matches = Matches(rows, columns, torch.ones_like(rows, dtype=torch.bool), grades)
        found = rank_positives(scores.of(block), matches, at_once=at_once)
        tally.add(ranked_measures(found, places), len(found.positives))
    nothing = "no document for any query"
    return tally.percentages(_names(places), distributed, queries.device, "relevant", nothing)


def _names(places: tuple[int, ...]) -> list[str]:
    at_places = [f"{measure}@{k}" for measure in ("accuracy", "precision", "recall") for k in places]
    return [*at_places, f"ndcg@{NDCG_AT}", f"mrr@{MRR_AT}", f"map@{MAP_AT}", "mAP"]


def ranked_measures(ranked: Ranked, places: tuple[int, ...]) -> dict[str, Float[Tensor, " queries"]]:
    """Each query's measures from its ranks, between 0 and 1; `places` are the k of accuracy, precision and recall."""
    relevant, first, precisions = ranked.positives.double(), ranked.ranks[:, 0], ranked.precisions
    hits = {k: (ranked.valid & (ranked.ranks <= k)).sum(1).double() for k in places}
    early = precisions.where(ranked.ranks <= MAP_AT, 0.0).sum(1)
    return {
        **{f"accuracy@{k}": (first <= k).double() for k in places},
        **{f"precision@{k}": hits[k] / k for k in places},
        **{f"recall@{k}": hits[k] / relevant for k in places},
        f"ndcg@{NDCG_AT}": _ndcg(ranked, NDCG_AT),
        f"mrr@{MRR_AT}": (first <= MRR_AT) / first.double(),
        f"map@{MAP_AT}": early / relevant.clamp_max(MAP_AT),
        "mAP": precisions.sum(1) / relevant,
    }


def _ndcg(ranked: Ranked, k: int) -> Float[Tensor, " queries"]:
    """Discounted gain of the places up to k, over that of the best order of the same grades."""
    gained = (ranked.grades / (ranked.ranks.double() + 1).log2()).where(ranked.valid & (ranked.ranks <= k), 0.0).sum(1)
    # the best order there is: the query's own grades, falling
    best = ranked.grades.where(ranked.valid, 0.0).sort(dim=1, descending=True).values[:, :k]
    discounts = (torch.arange(best.shape[1], dtype=torch.float64, device=best.device) + 2).log2()
    return gained / (best / discounts).sum(1)
