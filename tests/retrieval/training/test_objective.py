"""The objective: relevance by id, self-matches left out, every parameter in one module."""

import torch
from retrieval import toy
from torch import nn

from gssf_plug.losses import Hinge, InfoNCE
from gssf_plug.retrieval.training.objective import Objective


class Spy(nn.Module):
    def forward(self, scores, relevance, *, forbidden=None):
        self.seen = scores, relevance, forbidden
        return scores.sum()


def test_two_towers_relevance_by_id():
    spy, batch = Spy(), toy.collate(toy.rows(5))
    batch["image_ids"] = torch.tensor([3, 3, 1, 2, 8])
    batch["text_ids"] = torch.tensor([3, 1, 1, 7, 8])
    model = toy.model(dropout=0.0)
    Objective(model, spy)(batch)
    scores, relevance, forbidden = spy.seen
    embedding = model(batch)
    torch.testing.assert_close(scores, model.metric(embedding.queries, embedding.gallery))
    assert forbidden is None
    for row, image in enumerate([3, 3, 1, 2, 8]):
        assert relevance[row].tolist() == [image == text for text in (3, 1, 1, 7, 8)]


def test_one_tower_leaves_out_self_matches():
    spy = Spy()
    data = toy.Labelled(8)
    Objective(toy.one_tower(), spy)(toy.collate_labelled([data[row] for row in range(8)]))
    _, relevance, forbidden = spy.seen
    assert torch.equal(forbidden, torch.eye(8, dtype=torch.bool))
    assert relevance[0].tolist() == [row % 6 == 0 for row in range(8)]


def test_metric_and_scale_are_parameters_of_the_objective():
    names = {name for name, _ in Objective(toy.model(), InfoNCE()).named_parameters()}
    assert "loss.scale.log_scale" in names
    assert "model.metric.structures.block_diagonal.weight" in names
    assert "loss.calls" in Objective(toy.model(), Hinge()).state_dict()


def test_scores_are_float32_under_autocast():
    spy = Spy()
    with torch.autocast("cpu", torch.bfloat16):
        Objective(toy.model(), spy)(toy.collate(toy.rows(4)))
    assert spy.seen[0].dtype == torch.float32
