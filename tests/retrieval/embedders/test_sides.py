"""The two sides as lists of floats: their inner product is the score, and the documents' is free of the matrix."""

import pytest
import torch
from retrieval.embedders.fake import DIM, trained

from gssf_plug import GSSFMetric
from gssf_plug.errors import ArgumentError, CheckpointError
from gssf_plug.retrieval.embedders.sides import as_metric, document_side, query_side


@pytest.mark.parametrize("normalize", [True, False])
def test_the_inner_product_is_the_score(normalize):
    metric = GSSFMetric(DIM, block_size=4, normalize=normalize)
    for parameter in metric.parameters():
        torch.nn.init.normal_(parameter)
    query, documents = torch.randn(DIM), torch.randn(3, DIM)
    folded, plain = query_side(metric, query.tolist()), document_side(metric, documents.tolist())
    assert isinstance(folded[0], float)
    found = torch.tensor(plain) @ torch.tensor(folded)
    torch.testing.assert_close(found, metric(query[None], documents)[0].detach())
    assert torch.allclose(torch.tensor(plain), documents) != normalize


def test_documents_are_free_of_the_matrix_and_none_are_none():
    documents = torch.randn(3, DIM).tolist()
    assert document_side(trained(), documents) == document_side(trained(), documents)
    assert document_side(trained(), []) == []


def test_a_metric_or_the_folder_of_one(tmp_path):
    metric = trained().train()
    assert as_metric(metric) is metric
    assert not metric.training
    metric.save_pretrained(tmp_path)
    assert torch.equal(as_metric(str(tmp_path)).matrix(), metric.matrix())
    with pytest.raises(ArgumentError, match="`metric` must be a GSSFMetric, or the path of one, but got int"):
        as_metric(3)
    with pytest.raises(CheckpointError):
        as_metric(str(tmp_path / "nowhere"))


@pytest.mark.bad_input
def test_another_width_is_refused():
    with pytest.raises(ArgumentError, match=f"must have {DIM} channels"):
        query_side(trained(), [1.0] * 3)
    with pytest.raises(ArgumentError, match=f"must have {DIM} channels"):
        document_side(trained(), [[1.0] * 3])


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("vector", "got"),
    [([float("nan")] * DIM, "NaN"), ([[1.0] * DIM], "shape"), (["a"] * DIM, "an array of"), (3, "shape")],
)
def test_what_is_no_vector_is_refused(vector, got):
    with pytest.raises(ArgumentError, match=f"`embedding` must .*{got}"):
        query_side(trained(), vector)
    with pytest.raises(ArgumentError, match="`embeddings` must "):
        document_side(trained(), [vector])
