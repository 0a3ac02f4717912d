"""The two sides of the metric for frameworks whose vectors are lists of floats."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gssf_plug.arguments import described
from gssf_plug.errors import ArgumentError
from gssf_plug.metric import GSSFMetric
from gssf_plug.metric.arrays import check_has_values, float_features

__all__ = ["as_metric", "document_side", "query_side"]


def as_metric(metric: object) -> GSSFMetric:
    """The metric itself, or the one in a folder, in evaluation mode.

    Raises:
        ArgumentError: the value is neither a metric nor a path.
        CheckpointError: the folder holds no metric.
    """
    if isinstance(metric, GSSFMetric):
        return metric.eval()
    if isinstance(metric, str):
        return GSSFMetric.from_pretrained(metric).eval()
    remedy = "Pass GSSFMetric.from_pretrained(folder), or the folder."
    raise ArgumentError("metric", "be a GSSFMetric, or the path of one", described(metric), remedy)


@torch.no_grad()
def query_side(metric: GSSFMetric, vector: Sequence[float]) -> list[float]:
    """The folded query: its inner product with a document's vector is the score.

    Args:
        metric: metric of width D.
        vector: embedding of a query, D numbers.

    Raises:
        ArgumentError: the vector is no list of finite numbers, or has another width than the metric.
    """
    folded: Tensor = metric.fold(_on_device_of(metric, "embedding", vector, 1))
    return folded.tolist()


@torch.no_grad()
def document_side(metric: GSSFMetric, vectors: Sequence[Sequence[float]]) -> list[list[float]]:
    """The documents' vectors, of unit length unless the metric has `normalize=False`; free of the learned matrix.

    Args:
        metric: metric of width D.
        vectors: embeddings of M documents, each of D numbers.

    Raises:
        ArgumentError: a vector is no list of finite numbers, or has another width than the metric.
    """
    if not len(vectors):
        return []
    plain: Tensor = metric.gallery(_on_device_of(metric, "embeddings", vectors, 2))
    return plain.tolist()


def _on_device_of(metric: GSSFMetric, name: str, given: object, dimensions: int) -> Tensor:
    values = float_features(name, given)
    check_has_values(name, values)
    if values.ndim != dimensions:
        rule = "be one list of numbers" if dimensions == 1 else "be one list of numbers for each document"
        raise ArgumentError(name, rule, described(values), "Give what the embedder returns.")
    if not bool(values.isfinite().all()):
        raise ArgumentError(name, "hold finite numbers", "NaN or infinite ones", "Look at what the embedder returns.")
    return values.to(next(metric.parameters()).device, torch.float32)
