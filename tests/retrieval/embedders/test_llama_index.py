"""LlamaIndex's index, its cosine store, asynchronous calls and its cache around the metric's embedding."""

import asyncio

import pytest
import torch
from retrieval.embedders.fake import TEXTS, scores, trained, vector

pytest.importorskip("llama_index.core")
pytestmark = pytest.mark.filterwarnings("default")  # of other people's packages

from llama_index.core import VectorStoreIndex  # noqa: E402
from llama_index.core.base.embeddings.base import BaseEmbedding  # noqa: E402
from llama_index.core.schema import TextNode  # noqa: E402
from llama_index.core.storage.kvstore import SimpleKVStore  # noqa: E402

from gssf_plug.errors import ArgumentError  # noqa: E402
from gssf_plug.retrieval.embedders.llama_index import MetricEmbedding  # noqa: E402


class Plain(BaseEmbedding):
    def _get_query_embedding(self, query):
        return vector(query)

    async def _aget_query_embedding(self, query):
        return vector(query)

    def _get_text_embedding(self, text):
        return vector(text)


@pytest.fixture
def wrapped(tmp_path):
    metric = trained()
    metric.save_pretrained(tmp_path / "metric")
    return MetricEmbedding(Plain(), str(tmp_path / "metric")), metric


def test_the_inner_product_is_the_score_and_the_sides_differ(wrapped):
    embedding, metric = wrapped
    query = torch.tensor(embedding.get_query_embedding("cat"))
    documents = torch.tensor(embedding.get_text_embedding_batch(TEXTS))
    torch.testing.assert_close(documents @ query, scores(metric, "cat"))
    assert embedding.get_query_embedding("cat") != embedding.get_text_embedding("cat")


def test_asynchronous_calls_give_the_same(wrapped):
    embedding, _ = wrapped
    assert asyncio.run(embedding.aget_query_embedding("cat")) == embedding.get_query_embedding("cat")
    assert asyncio.run(embedding.aget_text_embedding("cat")) == embedding.get_text_embedding("cat")
    assert asyncio.run(embedding.aget_text_embedding_batch(TEXTS)) == embedding.get_text_embedding_batch(TEXTS)


def test_an_index_ranks_as_the_metric_and_counts_in_cosines(wrapped):
    embedding, metric = wrapped
    index = VectorStoreIndex([TextNode(text=text) for text in TEXTS], embed_model=embedding)
    found = index.as_retriever(similarity_top_k=len(TEXTS)).retrieve("cat")
    expected = scores(metric, "cat")
    order = expected.argsort(descending=True)
    assert [node.text for node in found] == [TEXTS[at] for at in order]
    length = torch.tensor(embedding.get_query_embedding("cat")).norm()
    torch.testing.assert_close(torch.tensor([node.score for node in found]).float(), expected[order] / length)


def test_a_cache_is_refused_at_once_and_later(wrapped):
    embedding, metric = wrapped
    with pytest.raises(ArgumentError, match="`embeddings_cache` must be None"):
        MetricEmbedding(Plain(), metric, embeddings_cache=SimpleKVStore())
    with pytest.raises(ArgumentError, match="`embeddings_cache` must be None"):
        embedding.embeddings_cache = SimpleKVStore()
    below = MetricEmbedding(Plain(embeddings_cache=SimpleKVStore()), metric)
    document, query = below.get_text_embedding("cat"), below.get_query_embedding("cat")
    assert document != query
    torch.testing.assert_close(torch.tensor(query), torch.tensor(embedding.get_query_embedding("cat")))


@pytest.mark.bad_input
def test_what_is_no_plain_embedding_is_refused(wrapped):
    embedding, metric = wrapped
    for wrong in (embedding, vector):
        with pytest.raises(ArgumentError, match="`embedding` must be a LlamaIndex embedding without a metric"):
            MetricEmbedding(wrong, metric)
