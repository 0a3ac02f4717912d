"""Queries that rank a whole corpus in evaluation, and batches that speak of queries and items."""

import pytest
import torch
from accelerate.state import AcceleratorState
from retrieval import toy

from gssf_plug.errors import ArgumentError
from gssf_plug.evaluation import document_ranking
from gssf_plug.retrieval import Embedding, document_measures

DOCUMENTS = toy.rows(70, seed=5)
QUERIES = DOCUMENTS[10:30]  # their ids; the same images


pytestmark = pytest.mark.usefixtures("fresh_accelerator")


def neutral(rows):
    batch = toy.collate(rows)
    names = {"images": "queries", "image_ids": "query_ids", "texts": "items", "text_ids": "item_ids"}
    return {names[name]: entry for name, entry in batch.items()}


def one_side(rows):
    """Documents alone where a row has no image, else both."""
    if "image" in rows[0]:
        return neutral(rows)
    return {"items": torch.stack([row["text"] for row in rows]), "item_ids": torch.stack([row["id"] for row in rows])}


def corpus():
    return [{name: row[name] for name in ("text", "id")} for row in DOCUMENTS]


def trainer(folder, **parts):
    given = {"collate": neutral, "eval_collate": one_side, "eval_data": QUERIES, "eval_gallery": corpus(), **parts}
    return toy.trainer(folder, changes={"best": "mAP", "epochs": 2}, **given)


def test_every_query_ranks_the_whole_corpus(tmp_path):
    made = trainer(tmp_path)
    got = made.evaluate()
    model = made.model.eval()
    with torch.no_grad():
        queries = model.encode_image(torch.stack([row["image"] for row in QUERIES]))
        documents = model.encode_text(torch.stack([row["text"] for row in DOCUMENTS]))
    pairs = torch.stack([torch.arange(20), torch.arange(10, 30)], dim=1)
    assert got == pytest.approx(document_ranking(queries, documents, pairs, model.metric))
    among_themselves = document_ranking(queries, documents[10:30], pairs - torch.tensor([0, 10]), model.metric)
    assert got["recall@10"] < among_themselves["recall@10"]
    progress = made.train()
    assert progress.best_score == max(made.evaluate()["mAP"], progress.best_score)


def test_neutral_names_say_the_same(tmp_path):
    model = toy.model().eval()
    for one, other in zip(model(toy.collate(QUERIES)), model(neutral(QUERIES)), strict=True):
        assert torch.equal(one, other)
    batch = neutral(QUERIES)
    assert torch.equal(model.encode_query(batch["queries"]), model.encode_image(batch["queries"]))
    assert torch.equal(model.encode_item(batch["items"]), model.encode_text(batch["items"]))
    with pytest.raises(ArgumentError, match="'queries', 'query_ids', 'items', 'item_ids'"):
        model({"queries": batch["queries"], "items": batch["items"]})


def test_a_model_trains_on_queries_and_items(tmp_path):
    """The same run, whatever its batches call the two sides."""
    scores = []
    for number, collate in enumerate((toy.collate, neutral)):
        AcceleratorState._reset_state(reset_partial_state=True)
        made = toy.trainer(tmp_path / str(number), changes={"epochs": 2}, collate=collate)
        made.train()
        scores.append([parameter.detach().clone() for parameter in made.model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*scores, strict=True))


@pytest.mark.parametrize("kept", ["queries", "items"])
def test_one_side_alone_is_encoded_in_evaluation(kept):
    model, whole = toy.model().eval(), neutral(QUERIES)
    ids = {"queries": "query_ids", "items": "item_ids"}[kept]
    got, both = model({kept: whole[kept], ids: whole[ids]}), model(whole)
    present, empty = (0, 2) if kept == "queries" else (2, 0)
    assert torch.equal(got[present], both[present])
    assert got[empty].shape == (0, 8)
    assert len(got[empty + 1]) == 0
    assert not got.one_sided
    with pytest.raises(ArgumentError, match="`batch` must have the keys"):
        model.train()({kept: whole[kept], ids: whole[ids]})


def test_pairs_of_ids_say_what_is_relevant():
    torch.manual_seed(0)
    embedding = Embedding(
        torch.randn(4, 6), torch.tensor([7, 3, 7, 9]), torch.randn(5, 6), torch.tensor([1, 2, 3, 4, 5])
    )
    relevant = torch.tensor([[7, 2], [3, 5], [3, 1], [7, 4], [8, 1], [9, 99]])
    lists = [[1, 3], [4, 0], [1, 3], []]
    expected = document_ranking(embedding.queries, embedding.gallery, lists, ks=(1, 3))
    assert document_measures(relevant, ks=(1, 3))(embedding, None) == pytest.approx(expected)
    same = embedding._replace(gallery_ids=torch.tensor([7, 9, 7, 3, 0]))
    expected = document_ranking(same.queries, same.gallery, [[0, 2], [3], [0, 2], [1]], ks=(1, 10))
    assert document_measures()(same, None) == pytest.approx(expected)


@pytest.mark.bad_input
def test_a_measure_that_documents_do_not_have_is_named(tmp_path):
    with pytest.raises(ArgumentError, match=r"`best` must be a measure of the evaluation, \[.*'mAP'.*but got rsum"):
        toy.trainer(tmp_path, collate=neutral, eval_collate=one_side, eval_data=QUERIES, eval_gallery=corpus()).train()
