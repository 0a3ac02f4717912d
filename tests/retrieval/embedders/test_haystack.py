"""Haystack pipelines with the metric behind both embedders: scores, saving, copies."""

import pytest
import torch
from retrieval.embedders.fake import DIM, TEXTS, scores, trained, vector

pytest.importorskip("haystack")
pytestmark = pytest.mark.filterwarnings("default")  # of other people's packages

from haystack import Document, Pipeline, component  # noqa: E402
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever  # noqa: E402
from haystack.components.writers import DocumentWriter  # noqa: E402
from haystack.document_stores.in_memory import InMemoryDocumentStore  # noqa: E402

from gssf_plug.errors import ArgumentError  # noqa: E402
from gssf_plug.retrieval.embedders.haystack import FoldQuery, NormalizeDocuments  # noqa: E402


@component
class Embedder:
    @component.output_types(embedding=list[float])
    def run(self, text: str) -> dict:
        return {"embedding": vector(text)}


@pytest.fixture
def metric(tmp_path):
    made = trained()
    made.save_pretrained(tmp_path / "metric")
    return made


def store_of(metric) -> InMemoryDocumentStore:
    store = InMemoryDocumentStore(embedding_similarity_function="dot_product")
    indexing = Pipeline()
    indexing.add_component("sides", NormalizeDocuments(metric))
    indexing.add_component("writer", DocumentWriter(store))
    indexing.connect("sides.documents", "writer.documents")
    indexing.run({"sides": {"documents": [Document(content=text, embedding=vector(text)) for text in TEXTS]}})
    return store


def test_the_scores_of_a_pipeline_are_the_metrics(metric):
    asking = Pipeline()
    asking.add_component("embedder", Embedder())
    asking.add_component("fold", FoldQuery(metric))
    asking.add_component("retriever", InMemoryEmbeddingRetriever(store_of(metric), top_k=len(TEXTS), scale_score=False))
    asking.connect("embedder.embedding", "fold.embedding")
    asking.connect("fold.embedding", "retriever.query_embedding")
    found = asking.run({"embedder": {"text": "cat"}})["retriever"]["documents"]
    expected = scores(metric, "cat")
    order = expected.argsort(descending=True)
    assert [document.content for document in found] == [TEXTS[at] for at in order]
    torch.testing.assert_close(torch.tensor([document.score for document in found]).float(), expected[order])


def test_given_documents_stay_as_they_are(metric):
    given = Document(content="cat", embedding=vector("cat"))
    made = NormalizeDocuments(metric).run(documents=[given])["documents"][0]
    assert given.embedding == vector("cat")
    assert made.id == given.id
    torch.testing.assert_close(torch.tensor(made.embedding).norm(), torch.tensor(1.0))


def test_a_pipeline_is_saved_by_the_folder_of_its_metric(metric, tmp_path):
    pipeline = Pipeline()
    pipeline.add_component("fold", FoldQuery(str(tmp_path / "metric")))
    again = FoldQuery.from_dict(pipeline.get_component("fold").to_dict())
    assert isinstance(again, FoldQuery)
    assert again.run(embedding=vector("cat")) == FoldQuery(metric).run(embedding=vector("cat"))
    with pytest.raises(ArgumentError, match="`metric` must be the path of a folder"):
        FoldQuery(metric).to_dict()


@pytest.mark.bad_input
def test_a_document_without_embedding_and_another_width_are_named(metric):
    with pytest.raises(ArgumentError, match="`documents` must all have an embedding"):
        NormalizeDocuments(metric).run(documents=[Document(content="cat")])
    with pytest.raises(ArgumentError, match=str(DIM)):
        FoldQuery(metric).run(embedding=[1.0, 2.0])
