r"""Instance (fine-grained) retrieval: R@K, MAP@R and R-precision of a set against itself, or against a gallery.

    R@K = [rank_1 <= K]        MAP@R = (1/R) Σ_{i: rank_i <= R} i / rank_i        R-precision = #{i: rank_i <= R} / R

R is the number of a query's positives. In the one-set form every item is a query and all others are its gallery: the
item itself is taken out by its index. Code that drops the first hit instead (pytorch-metric-learning before 1.5.2; 2.9
masks the index as here) drops another item wherever a learned metric does not put an item first in its own ranking. A
class with one member gives no query. A tie is lost by the positive.

Source of MAP@R: Musgrave et al., "A metric learning reality check", ECCV 2020.
"""

from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gssf_plug.distributed import share
from gssf_plug.errors import ArgumentError
from gssf_plug.evaluation.options import (
    Labels,
    Rows,
    checked_features,
    checked_labels,
    checked_metric,
    checked_sides,
    numbered,
)
from gssf_plug.evaluation.positives import LabelGroups
from gssf_plug.evaluation.ranking import Ranked, Tally, checked_ranks, query_blocks, query_chunks, rank_positives
from gssf_plug.evaluation.scores import FeatureScores
from gssf_plug.metric import GSSFMetric
from gssf_plug.metric.exact.fast_rows import fast_dtype
from gssf_plug.metric.exact.plain_tensors import on_plain_tensors

__all__ = ["instance_recall"]


@on_plain_tensors
def instance_recall(
    features: Float[Tensor | np.ndarray, "n dim"] | Rows,
    labels: Labels,
    *,
    metric: GSSFMetric | None = None,
    ks: Iterable[int] = (1, 2, 4, 8),
    gallery: Float[Tensor | np.ndarray, "m dim"] | Rows | None = None,
    gallery_labels: Labels | None = None,
    query_chunk: int | None = None,
    distributed: bool = False,
) -> dict[str, float]:
    """R@K, MAP@R and R-precision in %, exactly.

    Args:
        features: N×D, the queries, and the gallery too where `gallery` is None.
        labels: class of each.
        metric: the similarity; None (default) means cosine.
        ks: the places of "R@k"; default 1, 2, 4, 8 (CUB, Cars). SOP uses 1, 10, 100, 1000.
        gallery: M×D features of a gallery of its own, as in In-Shop; nothing is then masked.
        gallery_labels: class of each gallery item; goes with `gallery`.
        query_chunk: queries ranked at once; default as many as 32 MB of scores hold, at most 2,048.
        distributed: share the queries among the processes, all of which call with the same arguments.

    Returns:
        "R@1", "R@2", "R@4", "R@8" (or other `ks`), "MAP@R" and "R-precision", means over the queries that have a
        positive.

    Raises:
        ArgumentError: no items, widths that differ, NaN in features or metric, labels of another length, `gallery`
            without `gallery_labels`, no query with a positive.

    Example:
        >>> instance_recall(torch.eye(2).repeat(2, 1), torch.tensor([0, 1, 0, 1]), ks=(1,))
        {'R@1': 100.0, 'MAP@R': 100.0, 'R-precision': 100.0}
    """
    features = checked_features("features", features, metric)
    itself = gallery is None
    if gallery is None:
        if gallery_labels is not None:
            raise ArgumentError("gallery_labels", "come with `gallery`", "labels alone", "Give both or neither.")
        labels = checked_labels("labels", numbered(labels)[0], features, "features")
        gallery, gallery_labels = features, labels
    else:
        gallery = checked_features("gallery", gallery, metric, features.shape[1])
        columns = ("labels", "gallery_labels"), (labels, gallery_labels)
        labels, gallery_labels = checked_sides(*columns, (features, gallery), ("features", "gallery"))
    places = checked_ranks("ks", ks)
    metric = checked_metric(metric, features)
    scores = FeatureScores(metric, features, gallery, fast_dtype(features.device))
    groups, tally = LabelGroups(gallery_labels), Tally()
    chunks = share(query_chunks(len(features), len(gallery), query_chunk), distributed)
    for rows, at_once in query_blocks(chunks, groups.counts(labels), features.shape[1]):
        matches = groups.matches(labels[rows])
        if itself:  # rows of a block count from its start: nobody finds itself
            matches = matches._replace(counted=matches.columns != matches.rows + rows.start)
        positives = torch.bincount(matches.rows[matches.counted], minlength=rows.stop - rows.start)
        # no measure reads a rank beyond the number of positives, or beyond the largest k
        ranked = rank_positives(scores.of(rows), matches, positives.clamp_min(max(places)), at_once=at_once)
        tally.add(_measures(ranked, places), len(ranked.positives))
    names = [*(f"R@{k}" for k in places), "MAP@R", "R-precision"]
    nothing = "only classes without a second member" if itself else "no class of `gallery_labels`"
    return tally.percentages(names, distributed, features.device, "labels", nothing)


def _measures(ranked: Ranked, places: tuple[int, ...]) -> dict[str, Float[Tensor, " queries"]]:
    within = ranked.valid & (ranked.ranks <= ranked.positives[:, None])
    return {
        **{f"R@{k}": (ranked.ranks[:, 0] <= k).double() for k in places},
        "MAP@R": (ranked.precisions * within).double().sum(1) / ranked.positives,
        "R-precision": within.double().sum(1) / ranked.positives,
    }
