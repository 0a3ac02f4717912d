"""The metric as LangChain's `Embeddings`: `embed_query` folds, `embed_documents` does not.

    embeddings = MetricEmbeddings(HuggingFaceEmbeddings(model_name=...), GSSFMetric.from_pretrained("metric"))
    store = FAISS.from_texts(texts, embeddings, distance_strategy=DistanceStrategy.MAX_INNER_PRODUCT)

A folded query is no unit vector, so the store must rank by inner product. Put a cache of embeddings *below* this
wrapper, around the embeddings that it is given: a cache around the wrapper would keep folded queries beyond a new
metric, and one with `query_embedding_cache=True` gives a text that it met as a document back unfolded as a query.

Needs langchain-core (the extra `langchain`).
"""

from gssf_plug.arguments import check_text, described
from gssf_plug.errors import ArgumentError
from gssf_plug.metric import GSSFMetric
from gssf_plug.retrieval.embedders.sides import as_metric, document_side, query_side

try:
    from langchain_core.embeddings import Embeddings
except ImportError as error:
    raise ImportError(
        "gssf_plug.retrieval.embedders.langchain needs langchain-core; run: pip install langchain-core"
    ) from error

__all__ = ["MetricEmbeddings"]

ONE_TEXT = ("be one text", "embed_documents takes several.")


class MetricEmbeddings(Embeddings):
    """Embeddings whose inner product of query and document is the metric's score.

    Args:
        embeddings: LangChain embeddings that embed both sides as without a metric, D wide.
        metric: trained metric of width D, or the folder that holds it.

    Raises:
        ArgumentError: `embeddings` are no LangChain embeddings, or they fold already.
        CheckpointError: the folder holds no metric.
    """

    def __init__(self, embeddings: Embeddings, metric: GSSFMetric | str) -> None:
        if not isinstance(embeddings, Embeddings) or isinstance(embeddings, MetricEmbeddings):
            remedy = "Wrap the plain embeddings once."
            raise ArgumentError(
                "embeddings", "be LangChain embeddings without a metric", type(embeddings).__name__, remedy
            )
        self.embeddings, self.metric = embeddings, as_metric(metric)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """M×D vectors for the store, free of the learned matrix."""
        _check_texts(texts)
        return document_side(self.metric, self.embeddings.embed_documents(texts))

    def embed_query(self, text: str) -> list[float]:
        """The folded query, D numbers."""
        check_text("text", text, *ONE_TEXT)
        return query_side(self.metric, self.embeddings.embed_query(text))

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """`embed_documents`, through the asynchronous call of the embeddings."""
        _check_texts(texts)
        return document_side(self.metric, await self.embeddings.aembed_documents(texts))

    async def aembed_query(self, text: str) -> list[float]:
        """`embed_query`, through the asynchronous call of the embeddings."""
        check_text("text", text, *ONE_TEXT)
        return query_side(self.metric, await self.embeddings.aembed_query(text))


def _check_texts(texts: object) -> None:
    """A list of texts; one text alone would be embedded letter by letter."""
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise ArgumentError("texts", "be a list of texts", described(texts), "Give one text as [text].")
