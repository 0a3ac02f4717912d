"""What every retrieval model must hold, inherited by a test class each (tests/retrieval/models/).

A subclass makes its model with a metric or without, a batch of it, and the slow scores: one pair at a time, in float64.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from gssf_plug import GSSFMetric
from gssf_plug.errors import ArgumentError, CheckpointError
from gssf_plug.retrieval import Fragments, RetrievalModel
from gssf_plug.retrieval.models.embedding import Side

DIM = 8
IDS = {"image_ids": torch.tensor([1, 2, 3]), "text_ids": torch.tensor([3, 1, 1, 2, 9])}


def similarity(query: Tensor, item: Tensor, matrix: Tensor) -> float:
    """The score of two vectors by the metric's matrix."""
    return float(normalize(query, dim=0) @ matrix @ normalize(item, dim=0))


def items(side: Side) -> list[Tensor]:
    """Each item alone: a vector, or its valid fragments."""
    if isinstance(side, Fragments):
        return [features[mask] for features, mask in zip(side.features, side.mask, strict=True)]
    return list(side)


class RetrievalModelContract:
    def make(self, metric: GSSFMetric | None) -> RetrievalModel:
        """A small model whose features have DIM channels."""
        raise NotImplementedError

    def batch(self) -> Mapping[str, Any]:
        raise NotImplementedError

    def pair(self, model: RetrievalModel, query: Tensor, item: Tensor, similarity: Tensor) -> float:
        """The score of one query with one item by loops, where `similarity` is the metric's matrix."""
        raise NotImplementedError

    def metric(self) -> GSSFMetric:
        return GSSFMetric(DIM, block_size=4, constraint="symmetric")

    def perturbed(self, metric: bool = True) -> RetrievalModel:
        """Nothing shall hold because the metric is the identity."""
        model = self.make(self.metric() if metric else None)
        with torch.no_grad():
            for part in model.metrics():
                for parameter in part.parameters():
                    parameter.add_(0.3 * torch.randn_like(parameter))
        return model.eval()

    @pytest.mark.parametrize("metric", [True, False])
    def test_scores_are_those_of_each_pair_alone(self, metric: bool) -> None:
        model = self.perturbed(metric).double()
        with torch.no_grad():
            found = model(_double(self.batch()))
            scores = model.score(found.queries, found.gallery)
            matrix = model.metric.matrix() if model.metric is not None else torch.eye(DIM, dtype=torch.float64)
            slow = [[self.pair(model, q, g, matrix) for g in items(found.gallery)] for q in items(found.queries)]
        torch.testing.assert_close(scores, torch.tensor(slow, dtype=torch.float64))

    def test_a_neutral_metric_is_cosine(self) -> None:
        torch.manual_seed(1)
        learned = self.make(self.metric()).eval()
        torch.manual_seed(1)
        plain = self.make(None).eval()
        with torch.no_grad():
            ours, theirs = learned(self.batch()), plain(self.batch())
            torch.testing.assert_close(
                learned.score(ours.queries, ours.gallery), plain.score(theirs.queries, theirs.gallery)
            )

    def test_an_embedding_has_an_id_for_every_item(self) -> None:
        embedding = self.perturbed()(self.batch())
        assert len(embedding.queries) == len(embedding.query_ids)
        assert len(embedding.gallery) == len(embedding.gallery_ids)
        assert not embedding.query_ids.is_floating_point()

    def test_gradients_reach_the_encoders_and_the_metric(self) -> None:
        model = self.perturbed().train()
        embedding = model(self.batch())
        weights = torch.randn(len(embedding.queries), len(embedding.gallery))
        (model.score(embedding.queries, embedding.gallery) * weights).sum().backward()
        for part in [*model.encoders(), *model.metrics()]:
            reached = [parameter.grad is not None and bool(parameter.grad.any()) for parameter in part.parameters()]
            assert any(reached), type(part).__name__
        assert all(parameter.grad is not None for part in model.metrics() for parameter in part.parameters())

    def test_encoders_and_metrics_are_parts_of_the_model(self) -> None:
        model = self.perturbed()
        modules = set(model.modules())
        assert model.encoders()
        assert model.metrics()
        assert {*model.encoders(), *model.metrics()} <= modules
        assert not {id(p) for part in model.encoders() for p in part.parameters()} & {
            id(p) for part in model.metrics() for p in part.parameters()
        }

    def test_a_batch_without_its_keys_is_named(self) -> None:
        batch = self.batch()
        for key in batch:
            with pytest.raises(ArgumentError, match="`batch` must have the keys"):
                self.perturbed().train()({name: value for name, value in batch.items() if name != key})

    def test_it_comes_back_from_a_folder(self, tmp_path: Path) -> None:
        model = self.perturbed()
        model.save_pretrained(tmp_path)
        loaded = type(model).from_pretrained(tmp_path)
        assert not loaded.training
        assert repr(loaded) == repr(model)
        with torch.no_grad():
            ours, theirs = model(self.batch()), loaded(self.batch())
            assert torch.equal(model.score(ours.queries, ours.gallery), loaded.score(theirs.queries, theirs.gallery))

    def test_another_model_does_not_take_its_folder(self, tmp_path: Path) -> None:
        self.perturbed().save_pretrained(tmp_path)

        class Other(RetrievalModel):
            published = {"metric": "metric"}

        with pytest.raises(CheckpointError, match="not a Other. Load it with"):
            Other.from_pretrained(tmp_path)

    def test_a_metric_of_another_width_is_named(self) -> None:
        model = self.make(GSSFMetric(2 * DIM, block_size=4, constraint="symmetric")).eval()
        embedding = model(self.batch())
        with pytest.raises(ArgumentError, match=f"have {2 * DIM} channels"):
            model.score(embedding.queries, embedding.gallery)


def _double(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _double(part) for key, part in value.items()}
    return value.double() if value.is_floating_point() else value


def words_of(length: int = 5) -> dict[str, Tensor]:
    """Five captions, two of them padded."""
    mask = torch.ones(5, length, dtype=torch.long)
    mask[1, 3:] = mask[4, 2:] = 0
    return {"input_ids": torch.arange(5 * length).reshape(5, length) % 10 + 2, "attention_mask": mask}


def small(module: nn.Module, seed: int = 0) -> nn.Module:
    """The same weights wherever it is made."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return module
