r"""Where a score comes from: the part that each block of channels adds to it.

    s(x, y) = Σ_k x̂_(k)ᵀ M_k ŷ_(k)          M_k: the k-th block of W ⊙ U

Exact, not an approximation: blocks do not mix, so the parts of a pair add up to its score. A neutral metric gives the
parts of cosine, x̂_(k)ᵀ ŷ_(k).
"""

from jaxtyping import Float

from gssf_plug.errors import ArgumentError
from gssf_plug.metric.arrays import Array, check_broadcast, float_features, like_inputs
from gssf_plug.metric.metric import GSSFMetric
from gssf_plug.metric.options import check_metric

__all__ = ["block_contributions"]


def block_contributions(
    metric: GSSFMetric, queries: Float[Array, "*#batch dim"], items: Float[Array, "*#batch dim"]
) -> Float[Array, "*#batch blocks"]:
    """What each block of channels adds to the scores of pairs; sums to `metric.aligned(queries, items)`.

    Block k holds the channels k·s … (k+1)·s - 1 in the order of `metric.grouping`, where s is the side of
    `metric.blocks()`: 1 for a diagonal metric (a part per channel), `dim` for a dense or adjacency one (a single part).

    Args:
        metric: any GSSFMetric.
        queries: features of the query side, (..., D), not yet folded.
        items: features of the gallery side, (..., D), not yet normalised; leading dimensions are broadcast against
            those of `queries`.

    Returns:
        What each block adds to the score, (..., D/s) for blocks of s channels, in the dtype of the features; an array
        where the features are arrays.

    Raises:
        ArgumentError: `metric` is no metric, the features have another width, or their leading dimensions cannot be
            broadcast.

    Example:
        >>> import torch
        >>> metric = GSSFMetric(8, block_size=4)
        >>> x, y = torch.randn(5, 8), torch.randn(5, 8)
        >>> parts = block_contributions(metric, x, y)
        >>> parts.shape, torch.allclose(parts.sum(-1), metric.aligned(x, y), atol=1e-6)
        (torch.Size([5, 2]), True)
    """
    if not isinstance(metric, GSSFMetric):
        raise ArgumentError("metric", "be a GSSFMetric", type(metric).__name__, "GSSFMetric(dim) is neutral: cosine.")
    check_metric(metric, values=True)
    folded = metric.fold(float_features("queries", queries))
    given = metric.gallery(float_features("items", items))
    check_broadcast(("queries", "items"), (folded.shape[:-1], given.shape[:-1]))
    products = folded * given
    if metric.grouping is not None:
        products = products[..., metric.grouping]
    # a score is the sum of its channels' products: cut at the blocks, each part is one block's
    size = metric.blocks().shape[-1]
    return like_inputs(products.unflatten(-1, (metric.dim // size, size)).sum(-1), queries, items)
