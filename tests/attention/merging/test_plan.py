"""What a handle knows of each layer, and which layers could be merged: looked at, with nothing changed."""

from collections import Counter

import pytest
import torch
from attention.object_graph import object_graph
from attention.patching import perturb
from attention.small_models import small_bert, small_llama, small_qwen

from gssf_plug.attention import patch_attention
from gssf_plug.attention.merging.fold import NotFoldable
from gssf_plug.attention.merging.plan import PatchedLayer, plan_folds, plan_score_fold
from gssf_plug.attention.score_layer import ScoreMetric
from gssf_plug.attention.sites import record_calls


def test_the_older_name_of_a_layers_metrics() -> None:
    for layer in patch_attention(small_llama(), block_size=4).layers.values():
        assert isinstance(layer, PatchedLayer)
        assert layer.query is layer.metric_layer
        assert layer.metric_layer.heads.query_heads == 4


@pytest.mark.parametrize("sites", ["projection", "score"])
def test_a_plan_changes_nothing(sites: str) -> None:
    model = small_bert()
    patch = patch_attention(model, block_size=4, sites=sites)
    perturb(patch)
    before = object_graph(model)
    folds, refused = plan_folds(model, patch.layers)
    assert list(folds) == list(patch.layers)
    assert refused == {}
    assert object_graph(model) == before
    for name, fold in folds.items():
        (weight, _) = fold.new  # and the bias, which starts at zero
        assert not torch.equal(fold.new[weight], weight), name


def test_what_folds_now_may_not_fold_once_it_is_trained() -> None:
    """Each head's diagonal is neutral: one factor for all, which the query norm can take. Training parts them."""
    model = small_qwen()
    patch = patch_attention(model, terms=("diagonal",))
    assert list(plan_folds(model, patch.layers)[0]) == list(patch.layers)
    folds, refused = plan_folds(model, patch.layers, once_trained=True)
    assert folds == {}
    assert all("each head has a diagonal of its own" in reason for reason in refused.values())
    assert torch.equal(next(patch.parameters()), torch.ones(32))  # the values were tried on a copy


def test_a_layer_that_the_adapter_does_not_cover_is_neither_planned_nor_refused() -> None:
    patch = patch_attention(small_bert(), block_size=4)
    patch_attention(patch.model, block_size=4, layers=[1], adapter_name="second")
    folds, refused = plan_folds(patch.model, patch.layers)
    assert list(folds) == ["encoder.layer.1.attention.self"]
    assert refused == {}


def test_weights_of_two_modules_are_refused_at_both() -> None:
    model = small_bert()
    first, second = (layer.attention.self.query for layer in model.encoder.layer)
    second.weight = first.weight
    patch = patch_attention(model, block_size=4)
    folds, refused = plan_folds(model, patch.layers)
    assert folds == {}
    assert len(refused) == 2
    assert all("its weight is shared" in reason for reason in refused.values())


def test_a_score_without_an_example_or_without_a_query_below_is_refused() -> None:
    model = small_bert()
    patch = patch_attention(model, block_size=4, sites="score")
    perturb(patch)
    (name, layer), *_ = patch.layers.items()
    score = layer.metric_layer
    assert isinstance(score, ScoreMetric)
    users = Counter(parameter for module in model.modules() for parameter in module.parameters(recurse=False))
    call = record_calls(model, {name: layer.owner})[name]
    assert plan_score_fold(layer.owner, score, score.metric(), users, call).new
    with pytest.raises(NotFoldable, match="no example shows what lies between its query and the score"):
        plan_score_fold(layer.owner, score, score.metric(), users, None)
    score.below = None
    with pytest.raises(NotFoldable, match="its score is changed, and its query was not found"):
        plan_score_fold(layer.owner, score, score.metric(), users, call)
