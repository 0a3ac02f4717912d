"""Both ends of every ranking of a set by itself, of one product: what re-ranking scales its distances by."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gssf_plug.metric.exact.candidates import Candidates
from gssf_plug.metric.exact.canonical import CanonicalQueries, canonical_queries
from gssf_plug.metric.exact.decisions import best_of_candidates
from gssf_plug.metric.exact.fast_scores import fast_queries
from gssf_plug.metric.exact.first_look import FirstLook, first_look
from gssf_plug.metric.gallery import read_parts
from gssf_plug.metric.metric import GSSFMetric
from gssf_plug.metric.search import MANY, topk

__all__ = ["Ends", "nearest_and_farthest"]

QUERIES_AT_ONCE, ITEMS_AT_ONCE = 2048, 4096  # 32 MB of scores; the first items are looked at in a longer dtype


class Ends(NamedTuple):
    """`nearest` are the k best items of each, best first, and `farthest` is the worst: numbers of rows."""

    nearest: Int[Tensor, "n k"]
    farthest: Int[Tensor, " n"]


@torch.no_grad()
def nearest_and_farthest(metric: GSSFMetric, features: Float[Tensor, "n dim"], k: int) -> Ends:
    """`topk(metric, features, features, k)` and the item that is worst for each, exactly, ties by lower index.

    Args:
        metric: the similarity.
        features: N×D, all of which are searched for each of them.
        k: how many, 1 … N.

    Raises:
        ArgumentError: what `topk` refuses.
    """
    numbers = torch.arange(len(features), device=features.device)
    ends = Ends(numbers.new_empty(len(features), k), numbers.new_empty(len(features)))
    for rows in numbers.split(QUERIES_AT_ONCE):
        if k * MANY > len(features) or not _find(metric, features, rows, ends):
            ends.nearest[rows] = topk(metric, features[rows], features, k).indices
            # the fold is linear: the best of -x is the worst of x
            ends.farthest[rows] = topk(metric, -features[rows], features, 1).indices[:, 0]
    return ends


def _find(metric: GSSFMetric, features: Float[Tensor, "m dim"], rows: Int[Tensor, " n"], ends: Ends) -> bool:
    """Fill in the ends of some of them; False where fast products decide too little."""
    queries, k = canonical_queries(metric, features[rows]), ends.nearest.shape[1]
    size = len(features)
    parts = [slice(start, min(start + ITEMS_AT_ONCE, size)) for start in range(0, size, ITEMS_AT_ONCE)]
    near, far = _both_candidates(queries, k)
    for part, items in read_parts(features, parts, metric.normalize, len(rows), features.device, exact=False):
        look = near.add(items, part.start, None)
        look.negate()
        far.see(look, items, part.start)
        if near.too_many(part.stop - part.start) or far.too_many(part.stop - part.start):
            return False
    for side, candidates, all_rows in (
        (queries, near, ends.nearest),
        (queries.opposite(), far, ends.farthest[:, None]),
    ):
        candidates.prune()
        indices = all_rows[int(rows[0]) : int(rows[-1]) + 1]
        scores = torch.empty(indices.shape, device=features.device)
        best_of_candidates(side, features, candidates.rows, candidates.columns, (scores, indices))
        if not bool(scores.isfinite().all()):
            return False
    return True


def _both_candidates(queries: CanonicalQueries, k: int) -> tuple[Candidates, Candidates]:
    close = fast_queries(queries, torch.float32)
    opposite = close.opposite()
    return Candidates(close, k, first_look(queries, close)), Candidates(
        opposite, 1, FirstLook(queries.opposite(), opposite)
    )
