r"""The metric inside pytorch-metric-learning: its pair losses, miners and testers, with the metric trained along.

    metric = GSSFMetric(512, constraint="symmetric")
    distance = GSSFDistance(metric)
    loss = losses.MultiSimilarityLoss(distance=distance)            # loss.parameters() holds the metric's
    miner = miners.MultiSimilarityMiner(distance=distance)          # mines by the same similarity, without gradients
    knn = CustomKNN(distance)                                       # for AccuracyCalculator(knn_func=knn) and testers

Needs pytorch-metric-learning (extra `pml`). A known trap of theirs is a loss whose parameters no optimizer has: give
the optimizer `loss.parameters()` too, or use `MetricLearningLoss` with RetrievalTrainer, which does.

Every loss and miner of release 2.9 that leaves the distance open takes it. Those that are only defined for angles
(CosineSimilarity: ArcFace, Circle, CosFace, Instance, PNP, SmoothAP, SphereFace, TupletMargin, …), for LpDistance
(Angular, DynamicSoftMargin, FastAP, DistanceWeightedMiner) or for SNRDistance refuse it by their own assertion, and
rightly: a learned score has no fixed range.

Two of those mean something else on batches by class in release 2.9, with no error: SmoothAP is right only for n classes
of n items with each class in a row, and Instance takes the number of a class for the number of a row.

Where the references include the queries, the kNN of release 2.9 finds k + 1 neighbours and takes the item out by its
own index; an item that a learned metric leaves out of its own k + 1 loses the last of them instead, so that the k right
neighbours stay. Before 1.5.2 the first neighbour was dropped, whatever it was.
"""

from typing import Any, cast

from jaxtyping import Float, Int
from torch import Tensor, nn

from gssf_plug.arguments import check_function, check_module, described, is_dense
from gssf_plug.errors import ArgumentError
from gssf_plug.losses.embedding_loss import EmbeddingLoss, Score, check_features

try:
    from pytorch_metric_learning.distances import BaseDistance
except ImportError as error:
    raise ImportError(
        "gssf_plug.losses.pml needs pytorch-metric-learning. Install it with: pip install pytorch-metric-learning"
    ) from error

__all__ = ["GSSFDistance", "MetricLearningLoss"]

LOSS = "Give a loss object of pytorch-metric-learning, which reads embeddings, labels and mined tuples."
MINER = "Give a miner object of pytorch-metric-learning, which reads embeddings and labels."


class GSSFDistance(BaseDistance):
    """A pytorch-metric-learning distance that is a similarity (`is_inverted=True`): larger is nearer.

    Args:
        metric: metric that gives the similarities; it becomes a submodule. Its own normalisation is used, the distance
            adds none. Any module will do that scores all pairs when called, and single pairs with `pairwise` (or
            `aligned`).

    Raises:
        ArgumentError: the metric is no such module; the embeddings are no matrix or have another width than the metric.
    """

    def __init__(self, metric: nn.Module) -> None:
        remedy = "Give the GSSFMetric of the model."
        check_module("metric", metric, remedy)
        if not any(callable(getattr(metric, name, None)) for name in ("pairwise", "aligned")):
            raise ArgumentError("metric", "score single pairs with `pairwise`", described(metric), remedy)
        super().__init__(is_inverted=True, normalize_embeddings=False)
        self.metric = metric

    def check_shapes(self, query_emb: object, ref_emb: object) -> None:
        """What pytorch-metric-learning asks for before it compares: two matrices, or one and None."""
        for name, side in (("query_emb", query_emb), ("ref_emb", ref_emb)):
            alone = side is None and name == "ref_emb"
            if not alone and (not is_dense(side) or side.ndim != 2):
                remedy = "Give one row of numbers per item."
                raise ArgumentError(name, "be a matrix of embeddings N×D", described(side), remedy)

    def compute_mat(self, query_emb: Float[Tensor, "n dim"], ref_emb: Float[Tensor, "m dim"]) -> Float[Tensor, "n m"]:
        """All pairs."""
        return self.metric(query_emb, ref_emb)

    def pairwise_distance(
        self, query_emb: Float[Tensor, "n dim"], ref_emb: Float[Tensor, "n dim"]
    ) -> Float[Tensor, " n"]:
        """Row by row."""
        metric: Any = self.metric
        score = metric.pairwise if hasattr(metric, "pairwise") else metric.aligned
        return cast(Tensor, score(query_emb, ref_emb))


class MetricLearningLoss(EmbeddingLoss):
    """A pytorch-metric-learning loss, and a miner where wanted, as a loss of RetrievalTrainer.

    Args:
        loss: any loss of pytorch-metric-learning on embeddings and labels. Give it `distance=GSSFDistance(metric)` with
            the metric of the model; proxies and other parameters of the loss are trained too.
        miner: any of its miners that give tuples, or None (default).

    Raises:
        ArgumentError: `loss` or `miner` is no module; the features are no floating-point matrix, or the labels are no
            whole numbers, one for each row.
    """

    def __init__(self, loss: nn.Module, miner: nn.Module | None = None) -> None:
        check_module("loss", loss, LOSS)
        check_function("loss", loss, LOSS, takes=3)
        check_module("miner", miner, MINER, optional=True)
        check_function("miner", miner, MINER, takes=2, optional=True)
        super().__init__()
        self.loss = loss
        self.miner = miner

    def forward(self, features: Float[Tensor, "n dim"], labels: Int[Tensor, " n"], score: Score) -> Float[Tensor, ""]:
        """The loss of one batch; `score` is not used, the distances know the metric."""
        check_features(features, labels)
        mined: Any = self.miner(features, labels) if self.miner is not None else None
        value: Tensor = self.loss(features, labels, mined)
        return value
