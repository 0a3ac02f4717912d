"""Doors of what stands inside other libraries (pytorch-metric-learning, sentence-transformers, frameworks for RAG)."""

import functools
from typing import Any

import numpy as np
from haystack import Document
from langchain_core.embeddings import Embeddings
from llama_index.core.base.embeddings.base import BaseEmbedding
from pytorch_metric_learning import losses, miners
from wrong_calls.door import Door, features, label_ids, metric

from gssf_plug import GSSFMetric
from gssf_plug.losses.pml import GSSFDistance, MetricLearningLoss
from gssf_plug.retrieval.embedders.haystack import FoldQuery, NormalizeDocuments
from gssf_plug.retrieval.embedders.langchain import MetricEmbeddings
from gssf_plug.retrieval.embedders.llama_index import MetricEmbedding
from gssf_plug.retrieval.sentence_transformers import MetricModule, merged_modules

__all__ = ["FRAMEWORKS", "fold_query", "index_embedding", "normalize_documents"]


class Plain(Embeddings):
    """LangChain's, eight wide."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return [float(len(text)), *range(1, 8)]


class PlainIndex(BaseEmbedding):
    """LlamaIndex's, eight wide."""

    def _get_query_embedding(self, query: str) -> list[float]:
        return [float(len(query)), *range(1, 8)]

    _get_text_embedding = _aget_query_embedding = _get_query_embedding


def _loss() -> losses.MultiSimilarityLoss:
    return losses.MultiSimilarityLoss(distance=GSSFDistance(metric()))


def _sentences() -> dict[str, Any]:
    return {"sentence_embedding": features()}


def folded(sentence_embedding: Any) -> Any:
    """What the module makes of embeddings of sentences."""
    return (
        MetricModule(metric()).eval().forward({"sentence_embedding": sentence_embedding}, "query")["sentence_embedding"]
    )


def index_embedding(embedding: BaseEmbedding, metric: GSSFMetric | str) -> MetricEmbedding:
    """Without the signature that pydantic puts in the place of the real one."""
    return MetricEmbedding(embedding, metric)


def fold_query(metric: GSSFMetric | str) -> FoldQuery:
    """Without the signature that Haystack puts in the place of the real one."""
    return FoldQuery(metric)


def normalize_documents(metric: GSSFMetric | str) -> NormalizeDocuments:
    """As `fold_query`."""
    return NormalizeDocuments(metric)


def normalized(embedding: Any) -> Any:
    """What a document's embedding becomes."""
    return _haystack.run([Document(content="a", embedding=embedding)])


VECTOR = [1.0, *range(1, 8)]

_langchain, _haystack = MetricEmbeddings(Plain(), metric()), NormalizeDocuments(metric())

FRAMEWORKS = [
    Door(GSSFDistance, lambda: {"metric": metric()}, check=lambda made: made(features())),
    Door(
        GSSFDistance(metric()).forward, lambda: {"query_emb": features(), "ref_emb": features(4)}, nan_passes=True,
        open=("ref_emb",),  # their annotation is empty
    ),
    Door(
        MetricLearningLoss, lambda: {"loss": _loss(), "miner": miners.MultiSimilarityMiner()},
        check=lambda made: made(features(), label_ids(), metric()),
    ),
    Door(
        functools.partial(MetricLearningLoss(_loss()).forward, score=None),
        lambda: {"features": features(), "labels": label_ids()}, lambda given: (), True,
        left_out=("score",),  # which it does not read
        name="MetricLearningLoss.forward",
    ),
    Door(MetricModule, lambda: {"metric": metric()}, check=lambda made: made.forward(_sentences(), "query")),
    Door(
        MetricModule(metric()).eval().forward, lambda: {"features": _sentences(), "task": "query"},
        left_out=("unused",),  # which it does not read
    ),
    Door(
        folded, lambda: {"sentence_embedding": features()}, lambda given: np.shape(given["sentence_embedding"]), True,
    ),
    Door(merged_modules, lambda: {"metric": metric()}),
    Door(MetricEmbeddings, lambda: {"embeddings": Plain(), "metric": metric()}),
    Door(_langchain.embed_documents, lambda: {"texts": ["a", "bc"]}),
    Door(_langchain.embed_query, lambda: {"text": "a"}),
    Door(index_embedding, lambda: {"embedding": PlainIndex(), "metric": metric()}),
    *(Door(made, lambda: {"metric": metric()}) for made in (fold_query, normalize_documents)),
    Door(FoldQuery(metric()).run, lambda: {"embedding": VECTOR}),
    Door(_haystack.run, lambda: {"documents": [Document(content="a", embedding=VECTOR)]}),
    Door(normalized, lambda: {"embedding": VECTOR}),
]  # fmt: skip
