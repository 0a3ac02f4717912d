r"""The loss of features of a whole batch, without the whole score matrix where that is large.

Up to 2,048 × 2,048 pairs are scored at once. Beyond, a `RowLoss` is summed over strips of rows (and of columns), each
of which is scored again for its gradient: memory stays that of one strip, 1 MB of scores, whatever the batch. Time per
pair about doubles there, which an encoder hides. Value and gradient are the same up to the order of summation. Other
losses see all pairs at once, as they must.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gssf_plug.losses.pair_masks import Pairs, relevance_by_id, sort_pairs
from gssf_plug.losses.row_loss import RowLoss, RowSum, mask_name

__all__ = ["Score", "loss_of_pairs"]

Score = Callable[[Tensor, Tensor], Tensor]
WHOLE_SCORES = 4_194_304  # scored at once without strips
STRIP_SCORES = 262_144  # of one strip: 1 MB in float32, some twenty with all that its gradient needs


def loss_of_pairs(
    loss: nn.Module,
    score: Score,
    queries: Float[Tensor, "n dim"],
    query_ids: Int[Tensor, " n"],
    gallery: Float[Tensor, "m dim"],
    gallery_ids: Int[Tensor, " m"],
    *,
    itself: bool = False,
) -> Float[Tensor, ""]:
    """`loss` of the scores of all queries with all gallery items.

    Args:
        loss: loss that is called as `loss(scores, relevance, exclude=...)`, or with the older name `forbidden` for the
            mask.
        score: function from the features of both sides to their scores.
        queries: features of the queries, (N, D).
        query_ids: ids of the queries, (N,); equal ids belong together.
        gallery: features of the gallery, (M, D).
        gallery_ids: ids of the gallery, (M,).
        itself: True where both sides are one list, so that an item is not compared with itself.
    """
    batch = _Batch(score, queries, query_ids, gallery, gallery_ids, itself)
    if isinstance(loss, RowLoss) and len(queries) * len(gallery) > WHOLE_SCORES:
        terms = loss.begin()
        strips = [batch.rows, batch.columns] if loss.both_sides else [batch.rows]
        lengths = [(len(queries), len(gallery)), (len(gallery), len(queries))]
        return loss.combined([_summed(terms, strip, *size) for strip, size in zip(strips, lengths, strict=False)])
    whole = slice(0, len(queries))
    mask = {mask_name(loss): batch.excluded(whole)}
    value: Tensor = loss(batch.scores(whole), batch.relevance(whole), **mask)
    return value


class _Batch:
    """Features and ids; scores and masks of a strip on demand."""

    def __init__(
        self, score: Score, queries: Tensor, query_ids: Tensor, gallery: Tensor, gallery_ids: Tensor, itself: bool
    ) -> None:
        self.score, self.queries, self.gallery, self.itself = score, queries, gallery, itself
        self.query_ids, self.gallery_ids = query_ids, gallery_ids

    def scores(self, rows: slice) -> Float[Tensor, "n m"]:
        return self.score(self.queries[rows], self.gallery)

    def relevance(self, rows: slice) -> Tensor:
        return relevance_by_id(self.query_ids[rows], self.gallery_ids)

    def excluded(self, rows: slice) -> Tensor | None:
        if not self.itself:
            return None
        items = torch.arange(len(self.queries), device=self.queries.device)
        return items[rows, None] == items

    def rows(self, rows: slice) -> Pairs:
        return sort_pairs(self.scores(rows), self.relevance(rows), self.excluded(rows))

    def columns(self, columns: slice) -> Pairs:
        """The strip of these gallery items asking all queries."""
        scores = self.score(self.queries, self.gallery[columns]).T
        excluded = self.excluded(columns)  # symmetric
        return sort_pairs(scores, relevance_by_id(self.gallery_ids[columns], self.query_ids), excluded)


def _summed(terms: Callable[[Pairs], RowSum], strip: Callable[[slice], Pairs], rows: int, columns: int) -> RowSum:
    # a strip is scored, summed and forgotten; backward scores it once more
    size = max(1, STRIP_SCORES // columns)
    sums = [
        checkpoint(
            lambda part: tuple(terms(strip(part))),
            slice(start, min(start + size, rows)),
            use_reentrant=False,
            preserve_rng_state=False,
        )
        for start in range(0, rows, size)
    ]
    totals, counts = zip(*sums, strict=True)
    return RowSum(torch.stack(totals).sum(), torch.stack(counts).sum())
