r"""Where a score comes from: the part that each block of channels adds to it.

    s(x, y) = Σ_k x̂_(k)ᵀ M_k ŷ_(k)          M_k: the k-th block of W ⊙ U

Exact, not an approximation: blocks do not mix, so the parts of a pair add up to its score. A neutral metric gives the
parts of cosine, x̂_(k)ᵀ ŷ_(k).
"""

from jaxtyping import Float
from torch import Tensor

from gssf_plug.errors import ArgumentError
from gssf_plug.metric.metric import GSSFMetric

__all__ = ["block_contributions"]


def block_contributions(
    metric: GSSFMetric, queries: Float[Tensor, "*#batch dim"], items: Float[Tensor, "*#batch dim"]
) -> Float[Tensor, "*#batch blocks"]:
    """What each block of channels adds to the scores of pairs; sums to `metric.aligned(queries, items)`.

    Block k holds the channels k·s … (k+1)·s - 1 in the order of `metric.grouping`, where s is the side of
    `metric.blocks()`: 1 for a diagonal metric (a part per channel), `dim` for a dense or adjacency one (a single part).

    Args:
        metric: any GSSFMetric.
        queries: features of the query side, (..., D), not yet folded.
        items: features of the gallery side, (..., D), not yet normalised; leading dimensions are broadcast against
            those of `queries`.

    Returns:
        What each block adds to the score, (..., D/s) for blocks of s channels, in the dtype of the features.

    Raises:
        ArgumentError: `metric` is no metric, or the features have another width.

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
    products = metric.fold(queries) * metric.gallery(items)
    if metric.grouping is not None:
        products = products[..., metric.grouping]
    # a score is the sum of its channels' products: cut at the blocks, each part is one block's
    return products.unflatten(-1, (-1, metric.blocks().shape[-1])).sum(-1)
