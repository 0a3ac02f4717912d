r"""Re-identification: mAP, CMC and mINP of a query set against a gallery, by the protocol of Market-1501.

Of a query's ranking are taken out: images of the same identity by the same camera, and junk (identity -1). What is left
of its identity are its R positives; a query without any is skipped. Distractors are ordinary negatives: in Market-1501
they carry the identity 0, which no query has.

    AP = (1/R) Σ_i i / rank_i        CMC@k = [rank_1 <= k]        INP = R / rank_R

Sources: Zheng et al., "Scalable person re-identification", ICCV 2015 (mAP, CMC); Ye et al., "Deep learning for person
re-identification", TPAMI 2022 (mINP). A tie is lost by the positive; public code leaves it to its sort.
"""

from collections.abc import Callable, Iterable

import numpy as np
from jaxtyping import Float
from torch import Tensor

from gssf_plug.arguments import check_function
from gssf_plug.distributed import share
from gssf_plug.errors import ArgumentError
from gssf_plug.evaluation.options import (
    Labels,
    Rows,
    checked_features,
    checked_metric,
    checked_sides,
)
from gssf_plug.evaluation.positives import LabelGroups
from gssf_plug.evaluation.ranking import Ranked, Tally, checked_ranks, query_blocks, query_chunks, rank_positives
from gssf_plug.evaluation.scores import GivenScores, counted_scores
from gssf_plug.metric import GSSFMetric
from gssf_plug.metric.exact.plain_tensors import as_outside, on_plain_tensors

__all__ = ["Rescorer", "reid_ranking"]

JUNK = -1
NO_POSITIVE = "no identity of `query_ids` seen by another camera (junk and same-camera images removed)"
Rescorer = Callable[[Tensor, Tensor, GSSFMetric | None], Tensor]


@on_plain_tensors
def reid_ranking(
    query: Float[Tensor | np.ndarray, "n dim"] | Rows,
    gallery: Float[Tensor | np.ndarray, "m dim"] | Rows,
    query_ids: Labels,
    gallery_ids: Labels,
    query_cams: Labels,
    gallery_cams: Labels,
    *,
    metric: GSSFMetric | None = None,
    ranks: Iterable[int] = (1, 5, 10),
    rerank: Rescorer | None = None,
    query_chunk: int | None = None,
    distributed: bool = False,
) -> dict[str, float]:
    """MAP, CMC and mINP in %, exactly.

    Args:
        query: N×D features.
        gallery: M×D features.
        query_ids: identity of each query.
        gallery_ids: identity of each gallery image; -1 is junk and is never ranked.
        query_cams: camera of each query.
        gallery_cams: camera of each gallery image.
        metric: the similarity; None (default) means cosine.
        ranks: the places k of "R@k", which is CMC at k; default 1, 5, 10. `range(1, 51)` gives a curve.
        rerank: gives the N×M scores to rank by, such as `KReciprocal()`; default None, the metric's own.
        query_chunk: queries ranked at once; default as many as 32 MB of scores hold, at most 2,048.
        distributed: share the queries among the processes, all of which call with the same arguments.

    Returns:
        "mAP", "R@1", "R@5", "R@10" (or other `ranks`) and "mINP", means over the queries that have a positive.

    Raises:
        ArgumentError: an empty side, widths that differ, NaN in features or metric, identities or cameras missing or
            of another length, no query with a positive.

    Example:
        >>> import torch
        >>> x, ids = torch.eye(3), torch.arange(3)
        >>> reid_ranking(x, x, ids, ids, torch.zeros(3).long(), torch.ones(3).long(), ranks=(1,))
        {'mAP': 100.0, 'R@1': 100.0, 'mINP': 100.0}
    """
    query = checked_features("query", query, metric)
    gallery = checked_features("gallery", gallery, metric, query.shape[1])
    sides, names = (query, gallery), ("query", "gallery")
    query_ids, gallery_ids = checked_sides(("query_ids", "gallery_ids"), (query_ids, gallery_ids), sides, names)
    query_cams, gallery_cams = checked_sides(("query_cams", "gallery_cams"), (query_cams, gallery_cams), sides, names)
    places = checked_ranks("ranks", ranks)
    metric = checked_metric(metric, query)
    rescored = _rescored(rerank, query, gallery, metric) if rerank is not None else None
    ranked = gallery_ids != JUNK
    if not bool(ranked.all()):
        gallery, gallery_ids, gallery_cams = gallery[ranked], gallery_ids[ranked], gallery_cams[ranked]
        rescored = rescored[:, ranked] if rescored is not None else None
    chunks = share(query_chunks(len(query), len(gallery), query_chunk), distributed)
    scores = counted_scores(metric, query, gallery, chunks) if rescored is None else GivenScores(rescored)
    groups, tally = LabelGroups(gallery_ids), Tally()
    for rows, at_once in query_blocks(chunks, groups.counts(query_ids), query.shape[1]):
        matches = groups.matches(query_ids[rows])
        other = query_cams[rows][matches.rows] != gallery_cams[matches.columns]
        found = rank_positives(scores.of(rows), matches._replace(counted=other), at_once=at_once)
        tally.add(_measures(found, places), len(found.positives))
    measures = ["mAP", *(f"R@{k}" for k in places), "mINP"]
    return tally.percentages(measures, distributed, query.device, "gallery_ids", NO_POSITIVE)


def _rescored(rerank: Rescorer, query: Tensor, gallery: Tensor, metric: GSSFMetric) -> Float[Tensor, "n m"]:
    check_function("rerank", rerank, "Such as KReciprocal().", takes=3)
    scores = as_outside(rerank, query, gallery, metric)
    shape = (len(query), len(gallery))
    if not isinstance(scores, Tensor) or scores.shape != shape:
        got = f"shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
        raise ArgumentError("rerank", f"give a tensor of {shape} scores", got, "One score per query and gallery item.")
    return scores


def _measures(ranked: Ranked, places: tuple[int, ...]) -> dict[str, Float[Tensor, " queries"]]:
    # ranks ascend, so the hardest positive stands last
    last = ranked.ranks.gather(1, ranked.positives[:, None] - 1)[:, 0]
    return {
        "mAP": ranked.precisions.double().sum(1) / ranked.positives,
        **{f"R@{k}": (ranked.ranks[:, 0] <= k).double() for k in places},
        "mINP": ranked.positives.double() / last,
    }
