"""What stands around a model or its parts, nested in any order, and the paths of the plain model."""

import itertools

import pytest
import torch
from distillation.models import bert
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from gssf_plug.wrappers import plain_modules, plain_path, unwrap

WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "compile": lambda model: torch.compile(model, backend="eager"),
    "checkpoint": checkpoint_wrapper,
}


class Holder(nn.Module):
    """A model that happens to call its part `module` is no wrapper."""

    def __init__(self, module):
        super().__init__()
        self.module = module


@pytest.mark.parametrize("order", list(itertools.permutations(WRAPPERS)), ids=" ".join)
def test_wrappers_come_off_in_any_order(order):
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    wrapped = model
    for name in order:
        wrapped = WRAPPERS[name](wrapped)
    assert unwrap(wrapped) is model
    assert list(plain_modules(wrapped)) == ["", "0", "1"]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft 0.21
def test_peft_comes_off():
    model = bert()
    adapted = get_peft_model(model, LoraConfig(target_modules=["query"]))
    assert unwrap(nn.DataParallel(adapted)) is model


def test_a_plain_model_stays_whatever_its_parts_are_called():
    holder = Holder(nn.Linear(2, 2))
    assert unwrap(holder) is holder
    assert list(plain_modules(holder)) == ["", "module"]


def test_wrapped_parts_stand_at_the_plain_paths():
    """Of a wrapper and what it wraps, the wrapper, which is what runs."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU(), nn.Linear(2, 2)))
    paths = list(plain_modules(model))
    model[1] = checkpoint_wrapper(model[1])
    model[1]._checkpoint_wrapped_module[1] = torch.compile(model[1]._checkpoint_wrapped_module[1], backend="eager")
    found = plain_modules(model)
    assert sorted(found) == sorted(paths)
    assert found["1"] is model[1]
    assert found["1.1"] is model[1]._checkpoint_wrapped_module[1]
    assert [plain_path(name) for name, _ in model.named_parameters()] == [
        "0.weight",
        "0.bias",
        "1.1.weight",
        "1.1.bias",
    ]


def test_a_module_that_stands_at_two_paths_is_found_at_both():
    shared = nn.Linear(2, 2)
    assert [*plain_modules(nn.Sequential(shared, shared))] == ["", "0", "1"]
