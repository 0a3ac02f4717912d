"""The metric as two Haystack components, one behind each embedder: `FoldQuery` and `NormalizeDocuments`.

    indexing:  document_embedder.documents → NormalizeDocuments → writer
    asking:    text_embedder.embedding → FoldQuery → retriever.query_embedding

A folded query is no unit vector: give an in-memory store `embedding_similarity_function="dot_product"` and its
retriever `scale_score=False`, and its scores are the metric's.

Needs haystack-ai (the extra `haystack`).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gssf_plug.arguments import described, listed
from gssf_plug.errors import ArgumentError
from gssf_plug.metric import GSSFMetric
from gssf_plug.retrieval.embedders.sides import as_metric, document_side, query_side

try:
    from haystack import Document, component, default_from_dict, default_to_dict
except ImportError as error:
    raise ImportError(
        "gssf_plug.retrieval.embedders.haystack needs haystack-ai; run: pip install haystack-ai"
    ) from error

__all__ = ["FoldQuery", "NormalizeDocuments"]


class _WithMetric:
    """A component that is written into a pipeline's file by the folder of its metric."""

    def __init__(self, metric: GSSFMetric | str) -> None:
        self.folder = metric if isinstance(metric, str) else None
        self.metric = as_metric(metric)

    def to_dict(self) -> dict[str, Any]:
        """The component for a pipeline's file.

        Raises:
            ArgumentError: it was made from a metric in memory, which no file can name.
        """
        if self.folder is None:
            remedy = "Call metric.save_pretrained(folder) and make the component from the folder."
            raise ArgumentError(
                "metric", "be the path of a folder for a pipeline that is saved", "a GSSFMetric", remedy
            )
        return default_to_dict(self, metric=self.folder)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "_WithMetric":
        """The component of a pipeline's file."""
        return default_from_dict(cls, data)


@component
class FoldQuery(_WithMetric):
    """Folds the embedding of a query, so that its inner product with a document's is the metric's score.

    Args:
        metric: trained metric of width D, or the folder that holds it (then the pipeline can be saved).

    Raises:
        ArgumentError: `metric` is neither a metric nor a folder.
        CheckpointError: the folder holds no metric.
    """

    @component.output_types(embedding=list[float])
    def run(self, embedding: list[float]) -> dict[str, list[float]]:
        """`embedding`: D numbers, as the text embedder gives them; the same folded."""
        return {"embedding": query_side(self.metric, embedding)}


@component
class NormalizeDocuments(_WithMetric):
    """Gives documents the gallery side of the metric; free of the learned matrix, so a new metric needs no re-indexing.

    Args:
        metric: metric of width D, trained or not, or the folder that holds it.

    Raises:
        ArgumentError: `metric` is neither a metric nor a folder, or a document has no embedding.
        CheckpointError: the folder holds no metric.
    """

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, list[Document]]:
        """`documents`: each with an embedding of D numbers; copies come back, the given ones stay as they are."""
        given = listed(documents) if not isinstance(documents, Mapping) else None
        if given is None or not all(isinstance(document, Document) for document in given):
            remedy = "Put this component behind a document embedder."
            raise ArgumentError("documents", "be a list of Haystack documents", described(documents), remedy)
        without = [document.id for document in given if document.embedding is None]
        if without:
            remedy = "Put this component behind a document embedder."
            raise ArgumentError(
                "documents", "all have an embedding", f"{len(without)} without, the first {without[0]}", remedy
            )
        vectors = document_side(self.metric, [document.embedding for document in given])
        pairs = zip(given, vectors, strict=True)
        return {"documents": [replace(document, embedding=vector) for document, vector in pairs]}
