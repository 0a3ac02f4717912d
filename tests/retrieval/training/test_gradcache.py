"""Encoding in chunks: the gradient of the whole batch, dropout replayed, nothing kept, everything bad refused."""

import logging
from types import SimpleNamespace
from weakref import WeakSet

import pytest
import torch
from accelerate import Accelerator, DistributedType
from retrieval import toy
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gssf_plug import GSSFMetric
from gssf_plug.errors import ArgumentError
from gssf_plug.features import BNNeck
from gssf_plug.losses import BatchHardTriplet, Hinge, IdentityLoss, InfoNCE, SemiHardTriplet, WeightedSum
from gssf_plug.retrieval import NeckLoss, OneTower, TwoTower
from gssf_plug.retrieval.models.embedding import join_embeddings
from gssf_plug.retrieval.models.local_alignment import LocalAlignment
from gssf_plug.retrieval.training.gradcache import cached_backward, check_chunks, split_batch
from gssf_plug.retrieval.training.objective import Objective

LOSSES = {
    "InfoNCE": lambda: InfoNCE(),
    "hinge": lambda: Hinge(margin=0.5, learned_scale=True),
    "sum of hinges": lambda: Hinge(margin=0.5, warmup_steps=100),
    "batch hard": lambda: BatchHardTriplet(margin=1.0),
    "semi-hard": lambda: SemiHardTriplet(margin=1.0),
}


def gradients(objective, backward):
    objective.zero_grad()
    torch.manual_seed(7)
    value = backward()
    return value, {name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None}


def cached(objective, batch, chunk_size, **options):
    accelerator = Accelerator(cpu=True)
    return gradients(objective, lambda: cached_backward(objective, accelerator, batch, chunk_size, **options))


def direct(objective, batch, chunk_size):
    """The same chunks with their graphs kept: the same draws of dropout, and no cache."""

    def backward():
        loss = objective.compute_loss(
            join_embeddings([objective.model(chunk) for chunk in split_batch(batch, chunk_size)])
        )
        loss.backward()
        return loss.item()

    return gradients(objective, backward)


def assert_same(one, other):
    assert one[0] == pytest.approx(other[0], rel=1e-6)
    assert one[1].keys() == other[1].keys()
    for name, gradient in one[1].items():
        assert gradient.abs().max() > 1e-6, name
        torch.testing.assert_close(gradient, other[1][name], atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize("chunk_size", [1, 4, 9, 100])
@pytest.mark.parametrize("make", LOSSES.values(), ids=LOSSES)
def test_gradient_of_the_whole_batch(make, chunk_size):
    batch = toy.collate(toy.rows(21))
    batch["image_ids"] = batch["text_ids"] = torch.arange(21) % 15
    objective = Objective(toy.perturbed(toy.model(dropout=0.5)), make())
    assert_same(cached(objective, batch, chunk_size), direct(objective, batch, chunk_size))
    whole = Objective(toy.perturbed_two_towers(), make())
    assert_same(cached(whole, batch, chunk_size), direct(whole, batch, 21))


def test_one_tower_with_a_classifier_and_triplets():
    data = toy.Labelled(20)
    batch = toy.collate_labelled([data[row] for row in range(20)])
    loss = WeightedSum(IdentityLoss(8, 6), BatchHardTriplet(margin=1.0))
    nn.init.normal_(loss.losses[0].classifier.weight)
    objective = Objective(toy.perturbed_one_tower(), loss)
    assert_same(cached(objective, batch, 6), direct(objective, batch, 20))


def test_a_metric_on_computed_features():
    objective = Objective(toy.perturbed(TwoTower(None, None, GSSFMetric(6, block_size=3))), InfoNCE())
    batch = toy.collate(toy.rows(10))
    batch["images"] = batch["images"][:, :6]
    assert_same(cached(objective, batch, 4), direct(objective, batch, 10))


@pytest.mark.parametrize("kind", ["metric of attention", "frozen encoder", "neck"])
def test_computed_features_and_more_than_a_metric_to_learn(kind):
    """Parameters that no feature depends on: there is nothing to encode again."""
    torch.manual_seed(0)
    batch = {"images": torch.randn(6, 4, 8), "texts": torch.randn(6, 3, 8)}
    batch |= {"image_ids": torch.arange(6), "text_ids": torch.arange(6)}
    metric, loss = GSSFMetric(8, block_size=4, constraint="symmetric"), InfoNCE()
    if kind == "metric of attention":
        model = LocalAlignment(None, None, metric=metric, attention_metric=GSSFMetric(8, block_size=2))
    elif kind == "frozen encoder":
        model = TwoTower(nn.Linear(8, 8).requires_grad_(False), None, metric)
        model.unused = nn.Linear(2, 2)
    else:
        model = OneTower(None, metric, neck=BNNeck(8))
        loss = NeckLoss(model.neck, after=BatchHardTriplet(margin=2.0))
        batch = {"inputs": torch.randn(12, 8), "labels": torch.arange(12) % 4}
    objective = Objective(toy.perturbed(model).train(), loss)
    assert_same(cached(objective, batch, 3), direct(objective, batch, 12))


def test_fragments_of_different_widths():
    torch.manual_seed(0)
    model = LocalAlignment(nn.Linear(6, 8), nn.Linear(5, 8), metric=GSSFMetric(8, block_size=4))
    batch = {"images": torch.randn(7, 4, 6), "texts": torch.randn(7, 3, 5)}
    objective = Objective(toy.perturbed(model), InfoNCE())
    batch |= {"image_ids": torch.arange(7), "text_ids": torch.arange(7)}
    assert_same(cached(objective, batch, 3), direct(objective, batch, 7))


def test_sides_of_different_length_and_mappings():
    class Doubled(nn.Linear):
        def forward(self, values, scale):
            return super().forward(values * scale[:, None])

    torch.manual_seed(0)
    objective = Objective(
        toy.perturbed(TwoTower(nn.Linear(10, 8), Doubled(6, 8), GSSFMetric(8, block_size=4))), InfoNCE()
    )
    texts = {"values": torch.randn(11, 6), "scale": torch.rand(11) + 0.5}
    batch = {"images": torch.randn(4, 10), "image_ids": torch.arange(4), "texts": texts}
    batch["text_ids"] = torch.arange(11) % 4
    chunks = split_batch(batch, 3)
    assert [len(chunk["text_ids"]) for chunk in chunks] == [3, 3, 3, 2]
    assert [len(chunk["images"]) for chunk in chunks] == [1, 1, 1, 1]
    assert_same(cached(objective, batch, 3), direct(objective, batch, 11))


def test_lists_are_cut_where_tensors_are():
    """Texts that an encoder tokenizes itself come as a list: each must stay beside its own id."""
    for rows in range(1, 24):
        batch = {"numbers": torch.arange(rows), "texts": [str(row) for row in range(rows)]}
        for chunk_size in range(1, rows + 1):
            chunks = split_batch(batch, chunk_size)
            assert [chunk["texts"] for chunk in chunks] == [[str(int(row)) for row in c["numbers"]] for c in chunks]
            assert sum(len(chunk["texts"]) for chunk in chunks) == rows
            assert max(len(chunk["texts"]) for chunk in chunks) <= chunk_size


def test_generators_end_where_one_pass_leaves_them():
    batch, objective = toy.collate(toy.rows(8)), Objective(toy.model(dropout=0.5), InfoNCE())
    cached(objective, batch, 4)
    after = torch.rand(1)
    torch.manual_seed(7)
    for chunk in split_batch(batch, 4):
        objective.model(chunk)
    assert torch.equal(after, torch.rand(1))


def test_one_chunk_has_a_graph_at_a_time():
    alive, most = WeakSet(), []

    class Marker:
        pass

    class Watch(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.marker = Marker()  # lives as long as the graph
            alive.add(ctx.marker)
            most.append(len(alive))
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient

    class Encoder(nn.Linear):
        def forward(self, x):
            return Watch.apply(super().forward(x)) if torch.is_grad_enabled() else super().forward(x)

    objective = Objective(TwoTower(Encoder(10, 8), nn.Linear(6, 8)), InfoNCE())
    cached(objective, toy.collate(toy.rows(20)), 4)
    assert most == [1] * (1 + 5)  # the first is watched, for whether features are trained at all


def test_a_loss_that_is_not_finite_adds_nothing():
    batch, objective = toy.collate(toy.rows(8)), Objective(toy.model(), InfoNCE())
    batch["images"][3] = float("nan")
    value, found = cached(objective, batch, 4)
    assert value != value
    assert not found


def test_a_run_in_chunks_is_the_run_without(tmp_path):
    weights = []
    for number, chunk_size in enumerate((None, 4)):
        changes = {"chunk_size": chunk_size, "epochs": 3}
        trainer = toy.trainer(tmp_path / str(number), changes=changes, model=toy.model(dropout=0.0))
        trainer.train()
        weights.append(trainer.model.state_dict())
    assert not torch.equal(weights[0]["image_tower.encoder.0.weight"], toy.model().image_tower.encoder[0].weight)
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, atol=1e-4, rtol=1e-3, msg=name)


def test_batch_normalisation_is_warned_of(caplog):
    model = TwoTower(nn.Sequential(nn.Linear(10, 8), nn.BatchNorm1d(8)), nn.Linear(6, 8))
    with caplog.at_level(logging.WARNING):
        check_chunks(toy.model(), Accelerator(cpu=True), 4)
        assert not caplog.text
        check_chunks(model, Accelerator(cpu=True), 4)
    assert "chunk_size=4: batch normalisation sees chunks" in caplog.text


@pytest.mark.bad_input
class TestBadInput:
    def test_entries_without_rows(self):
        batch = toy.collate(toy.rows(8))
        with pytest.raises(ArgumentError, match="`texts` must hold one row per item.*rows of different number, .6, 8."):
            split_batch({**batch, "texts": {"a": torch.zeros(8), "b": torch.zeros(6)}}, 4)
        with pytest.raises(
            ArgumentError, match="`note` must hold one row per item to be encoded in chunks, but got str"
        ):
            split_batch({**batch, "note": "x"}, 4)

    def test_chunk_size(self, tmp_path):
        with pytest.raises(ArgumentError, match="`chunk_size` must be at least 1 and finite, but got 0"):
            toy.recipe(tmp_path, chunk_size=0)

    def test_deepspeed(self):
        accelerator = SimpleNamespace(distributed_type=DistributedType.DEEPSPEED)
        with pytest.raises(
            ArgumentError, match="`chunk_size` must be None under DeepSpeed, which owns the backward pass"
        ):
            check_chunks(toy.model(), accelerator, 4)
        check_chunks(toy.model(), accelerator, None)

    def test_ddp_that_stops_at_unused_parameters(self):
        wrapped = DistributedDataParallel.__new__(DistributedDataParallel)  # without a process group
        wrapped.find_unused_parameters = False
        with pytest.raises(ArgumentError, match="`accelerator` must let DDP find unused parameters where batches are"):
            cached_backward(wrapped, Accelerator(cpu=True), toy.collate(toy.rows(4)), 2)
