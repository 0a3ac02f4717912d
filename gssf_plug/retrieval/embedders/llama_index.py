"""The metric as LlamaIndex's `BaseEmbedding`: query embeddings fold, text embeddings do not.

    Settings.embed_model = MetricEmbedding(HuggingFaceEmbedding(model_name=...), GSSFMetric.from_pretrained("metric"))

A folded query is no unit vector. LlamaIndex's own SimpleVectorStore always ranks by cosine: the order of one query's
documents is right, but its numbers and cutoffs are `f·g / |f|`. A store with inner product gives the scores themselves.
`embeddings_cache` is refused here, since LlamaIndex keys it by the text alone and so mixes the two sides; give a cache
to the embedding that is wrapped.

Needs llama-index-core (the extra `llama-index`).
"""

from typing import Any

from gssf_plug.errors import ArgumentError
from gssf_plug.metric import GSSFMetric
from gssf_plug.retrieval.embedders.sides import as_metric, document_side, query_side

try:
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.bridge.pydantic import PrivateAttr
except ImportError as error:
    raise ImportError(
        "gssf_plug.retrieval.embedders.llama_index needs llama-index-core; run: pip install llama-index-core"
    ) from error

__all__ = ["MetricEmbedding"]


class MetricEmbedding(BaseEmbedding):
    """An embedding whose inner product of query and text is the metric's score.

    Args:
        embedding: LlamaIndex embedding that embeds as without a metric, D wide.
        metric: trained metric of width D, or the folder that holds it.
        **options: BaseEmbedding's own, such as `embed_batch_size`; not `embeddings_cache`.

    Raises:
        ArgumentError: `embedding` is no LlamaIndex embedding or folds already, or a cache is given.
        CheckpointError: the folder holds no metric.
    """

    _embedding: BaseEmbedding = PrivateAttr()
    _metric: GSSFMetric = PrivateAttr()

    def __init__(self, embedding: BaseEmbedding, metric: GSSFMetric | str, **options: Any) -> None:
        if not isinstance(embedding, BaseEmbedding) or isinstance(embedding, MetricEmbedding):
            remedy = "Wrap the plain embedding once."
            raise ArgumentError(
                "embedding", "be a LlamaIndex embedding without a metric", type(embedding).__name__, remedy
            )
        if options.get("embeddings_cache") is not None:
            raise _no_cache(options["embeddings_cache"])
        settings = {"model_name": embedding.model_name, "embed_batch_size": embedding.embed_batch_size}
        super().__init__(**{**settings, **options})
        self._embedding, self._metric = embedding, as_metric(metric)

    @classmethod
    def class_name(cls) -> str:
        """The name that LlamaIndex writes into its settings."""
        return "MetricEmbedding"

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse a cache that is set later, too: LlamaIndex does not validate what is assigned."""
        if name == "embeddings_cache" and value is not None:
            raise _no_cache(value)
        super().__setattr__(name, value)

    def _get_query_embedding(self, query: str) -> list[float]:
        return query_side(self._metric, self._embedding.get_query_embedding(query))

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return query_side(self._metric, await self._embedding.aget_query_embedding(query))

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return document_side(self._metric, self._embedding.get_text_embedding_batch(texts))

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return (await self._aget_text_embeddings([text]))[0]

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return document_side(self._metric, await self._embedding.aget_text_embedding_batch(texts))


def _no_cache(value: object) -> ArgumentError:
    remedy = "Give the cache to the embedding that is wrapped: it then keeps plain vectors, which outlive a new metric."
    rule = "be None, since LlamaIndex keys it by the text alone and would hand a document's vector to a query"
    return ArgumentError("embeddings_cache", rule, type(value).__name__, remedy)
