"""LangChain's own stores, thresholds and caches around the metric's embeddings."""

import asyncio

import pytest
import torch
from retrieval.embedders.fake import TEXTS, scores, trained, vector

pytest.importorskip("langchain_core")
pytestmark = pytest.mark.filterwarnings("default")  # of other people's packages

from langchain_core.embeddings import Embeddings  # noqa: E402
from langchain_core.vectorstores import InMemoryVectorStore  # noqa: E402

from gssf_plug.errors import ArgumentError  # noqa: E402
from gssf_plug.retrieval.embedders.langchain import MetricEmbeddings  # noqa: E402


class Plain(Embeddings):
    def embed_documents(self, texts):
        return [vector(text) for text in texts]

    def embed_query(self, text):
        return vector(text)


@pytest.fixture
def wrapped(tmp_path):
    metric = trained()
    metric.save_pretrained(tmp_path / "metric")
    return MetricEmbeddings(Plain(), str(tmp_path / "metric")), metric


def test_the_inner_product_is_the_score_and_the_sides_differ(wrapped):
    embeddings, metric = wrapped
    query, documents = embeddings.embed_query("cat"), embeddings.embed_documents(TEXTS)
    torch.testing.assert_close(torch.tensor(documents) @ torch.tensor(query), scores(metric, "cat"))
    assert embeddings.embed_query("cat") != embeddings.embed_documents(["cat"])[0]
    assert embeddings.embed_documents([]) == []


def test_one_text_is_no_list_of_texts(wrapped):
    embeddings, _ = wrapped
    with pytest.raises(
        ArgumentError, match=r"`texts` must be a list of texts, but got str\. Give one text as \[text\]"
    ):
        embeddings.embed_documents("cat")
    with pytest.raises(ArgumentError, match="`text` must be one text, but got list"):
        asyncio.run(embeddings.aembed_query(["cat"]))


def test_asynchronous_calls_give_the_same(wrapped):
    embeddings, _ = wrapped
    assert asyncio.run(embeddings.aembed_query("cat")) == embeddings.embed_query("cat")
    assert asyncio.run(embeddings.aembed_documents(TEXTS)) == embeddings.embed_documents(TEXTS)


def test_the_memory_store_ranks_as_the_metric_and_counts_in_cosines(wrapped):
    embeddings, metric = wrapped
    store = InMemoryVectorStore(embeddings)
    store.add_texts(TEXTS)
    found = store.similarity_search_with_score("cat", k=len(TEXTS))
    expected = scores(metric, "cat")
    order = expected.argsort(descending=True)
    assert [document.page_content for document, _ in found] == [TEXTS[at] for at in order]
    length = torch.tensor(embeddings.embed_query("cat")).norm()
    torch.testing.assert_close(torch.tensor([score for _, score in found]).float(), expected[order] / length)


def test_faiss_with_inner_product_gives_scores_and_thresholds_on_them(wrapped, tmp_path):
    pytest.importorskip("langchain_community")
    from langchain_community.vectorstores import FAISS
    from langchain_community.vectorstores.utils import DistanceStrategy

    embeddings, metric = wrapped
    options = {"distance_strategy": DistanceStrategy.MAX_INNER_PRODUCT, "relevance_score_fn": lambda score: score}
    store = FAISS.from_texts(TEXTS, embeddings, **options)
    store.save_local(str(tmp_path / "index"))
    again = FAISS.load_local(str(tmp_path / "index"), embeddings, allow_dangerous_deserialization=True, **options)
    expected = scores(metric, "cat")
    middle = float(expected.median())
    for one in (store, again):
        found = one.similarity_search_with_relevance_scores("cat", k=len(TEXTS), score_threshold=middle)
        right = [at for at in expected.argsort(descending=True).tolist() if expected[at] >= middle]
        assert [document.page_content for document, _ in found] == [TEXTS[at] for at in right]
        torch.testing.assert_close(torch.tensor([float(score) for _, score in found]), expected[right])


def test_a_cache_below_the_wrapper_keeps_both_sides_and_outlives_a_new_metric():
    pytest.importorskip("langchain_classic")
    from langchain_classic.embeddings import CacheBackedEmbeddings
    from langchain_core.stores import InMemoryByteStore

    bytes_kept = InMemoryByteStore()
    cached = CacheBackedEmbeddings.from_bytes_store(
        Plain(), bytes_kept, namespace="plain", query_embedding_cache=True, key_encoder="sha256"
    )
    for metric in (trained(), trained()):
        embeddings = MetricEmbeddings(cached, metric)
        documents = embeddings.embed_documents([*TEXTS, "cat"])
        query = embeddings.embed_query("cat")  # was a document a line before
        torch.testing.assert_close(torch.tensor(documents[:-1]) @ torch.tensor(query), scores(metric, "cat"))
        assert query != documents[-1]


@pytest.mark.bad_input
def test_what_is_no_plain_embedding_is_refused(wrapped):
    embeddings, metric = wrapped
    for wrong in (embeddings, vector):
        with pytest.raises(ArgumentError, match="`embeddings` must be LangChain embeddings without a metric"):
            MetricEmbeddings(wrong, metric)
    with pytest.raises(ArgumentError, match="`metric` must be a GSSFMetric, or the path of one"):
        MetricEmbeddings(Plain(), 3)
