"""Patterns, unwrapping, stacks and suggestions."""

import pytest
from distillation.models import TinyCNN, bert, vit
from peft import LoraConfig, get_peft_model
from torch import nn

from gssf_plug.distillation import suggest_taps
from gssf_plug.distillation.module_paths import find_modules, layer_paths
from gssf_plug.errors import ArgumentError


def test_globs_and_braces():
    model = bert(layers=3)
    assert find_modules(model, "encoder.layer.1") == ["encoder.layer.1"]
    assert find_modules(model, "encoder.layer.*") == [f"encoder.layer.{i}" for i in range(3)]
    assert find_modules(model, "encoder.layer.{2,0}") == ["encoder.layer.2", "encoder.layer.0"]
    assert find_modules(model, "encoder.layer.{0,1}.output.{dense,dropout}") == [
        f"encoder.layer.{i}.output.{name}" for i in (0, 1) for name in ("dense", "dropout")
    ]
    assert len(find_modules(model, "**.query")) == 3
    assert find_modules(model, "") == [""]


def test_a_wrong_path_names_near_matches():
    with pytest.raises(ArgumentError, match=r"but got 'encoder.layers.1'. Did you mean 'encoder.layer.1'"):
        find_modules(bert(), "encoder.layers.1")
    with pytest.raises(ArgumentError, match=r"Choose from '0', '1'\."):
        find_modules(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), "zzz")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft 0.21
def test_paths_are_those_of_the_plain_model():
    adapted = get_peft_model(bert(), LoraConfig(target_modules=["query"]))
    assert find_modules(nn.DataParallel(adapted), "encoder.layer.*") == ["encoder.layer.0", "encoder.layer.1"]


def test_the_stack_of_layers():
    assert layer_paths(bert(layers=3)) == [f"encoder.layer.{i}" for i in range(3)]
    assert [path.split(".")[-1] for path in layer_paths(vit())] == ["0", "1"]
    assert layer_paths(TinyCNN()) == ["stages.0", "stages.1"]
    assert layer_paths(nn.Linear(2, 2)) == []


def test_suggestions_put_the_layers_first():
    found = suggest_taps(bert(layers=3))
    assert [s.path for s in found[:3]] == [f"encoder.layer.{i}" for i in range(3)]
    assert [s.layer for s in found].count(True) == 3
    assert "embeddings" in [s.path for s in found]
    assert str(found[0]).split()[:2] == ["encoder.layer.0", "BertLayer"]
    assert found[0].parameters == sum(p.numel() for p in bert().encoder.layer[0].parameters())
