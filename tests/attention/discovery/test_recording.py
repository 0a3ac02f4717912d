"""Running a model undisturbed: everything that changed is put back; calls of its layers are noted and made again."""

import random

import pytest
import torch
from attention.object_graph import object_graph
from torch import Tensor, nn

from gssf_plug.attention.discovery.recording import first_tensor, record, substitute, tensors_in, undisturbed, with_new


class Restless(nn.Module):
    """Changes itself in every way that a run may."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("counted", torch.zeros(1))
        self.table, self.names, self.seen = {"a": torch.ones(2)}, ["x"], {1}
        self.generator = torch.Generator().manual_seed(3)
        self.settings = Settings()

    def forward(self, x: Tensor) -> Tensor:
        self.counted += 1
        self.table["a"] += 1
        self.table["b"] = 1
        self.names.append("y")
        self.seen.add(2)
        self.settings.inner["depth"] = 2
        self.flag = True
        self.made = nn.Linear(4, 4)
        self.layer.register_forward_hook(lambda *given: None)
        self.layer.register_forward_pre_hook(lambda *given: None)
        self.register_buffer("late", torch.zeros(1))
        self.layer.weight.requires_grad_(False)
        return self.layer(x) + torch.randn(4, generator=self.generator) + torch.rand(1) + random.random()


class Settings:
    def __init__(self) -> None:
        self.inner: dict[str, int] = {}


def test_every_kind_of_change_is_put_back() -> None:
    model = Restless().train()
    before = object_graph(model)
    with undisturbed(model):
        assert not model.training
        assert not torch.is_grad_enabled()
        for _ in range(2):
            model(torch.zeros(1, 4))
        assert object_graph(model) != before
    assert object_graph(model) == before


def test_what_a_run_raises_leaves_the_model_whole() -> None:
    model = Restless().train()
    before = object_graph(model)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), undisturbed(model):
        model(torch.zeros(1, 3))
    assert object_graph(model) == before


def test_a_compiled_model_runs_uncompiled() -> None:
    model, compiled = nn.Linear(2, 2), []
    model._compiled_call_impl = lambda *given: compiled.append(given)  # what Module.compile leaves
    with undisturbed(model):
        model(torch.zeros(1, 2))
    assert not compiled
    model(torch.zeros(1, 2))
    assert compiled


class Adder(nn.Module):
    """Adds its second argument, writes into the cache that it is given, and says whether both arguments are one."""

    def forward(self, x: Tensor, y: Tensor, *, cache: dict[str, Tensor]) -> tuple[str, Tensor, bool]:
        cache["sum"] = cache["sum"] + 1
        return "words", x + y + cache["sum"], x is y


class Twice(nn.Module):
    """Calls one layer twice and goes on with what it gave."""

    def __init__(self) -> None:
        super().__init__()
        self.add, self.out = Adder(), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        cache = {"sum": torch.zeros(3)}
        first = self.add(x, x, cache=cache)[1]
        return self.out(self.add(first, x, cache=cache)[1])


def test_every_call_is_noted_as_it_was_before_the_layer_ran() -> None:
    model, x = Twice(), torch.randn(2, 3)
    with torch.no_grad():
        found = record(lambda: model(x), {"add": model.add}, [model.out, model.add])
        calls = found.calls["add"]
        assert [call.options["cache"]["sum"].tolist() for call in calls] == [[0.0] * 3, [1.0] * 3]
        torch.testing.assert_close(calls[0].output, 2 * x + 1)
        torch.testing.assert_close(calls[1].output, 3 * x + 3)
        for _ in range(2):  # again and again: each time with arguments of its own
            assert torch.equal(calls[1].again(model.add), calls[1].output)
        assert calls[0].arguments[0] is calls[0].arguments[1]
        assert calls[1].arguments[0] is not calls[1].arguments[1]
    assert found.shapes == {model.out: (2, 3)}  # what gives a tuple has no shape
    assert not model.add._forward_hooks


def test_a_call_that_cannot_be_copied_cannot_be_made_again() -> None:
    class Locked:
        def __deepcopy__(self, memo: object) -> object:
            raise TypeError

    class Holder(nn.Module):
        def forward(self, x: Tensor, lock: object) -> Tensor:
            return 2 * x

    layer = Holder()
    call = record(lambda: layer(torch.ones(2), Locked()), {"": layer}).calls[""][0]
    assert call.arguments is None
    assert call.again(layer) is None
    assert call.output.tolist() == [2, 2]


def test_runs_begin_with_the_same_seeds() -> None:
    layer = nn.Dropout(0.5).train()
    one, other = (record(lambda: layer(torch.ones(64)), {"": layer}).calls[""][0].output for _ in range(2))
    assert torch.equal(one, other)


def test_a_model_goes_on_with_the_outputs_that_are_put_in_place() -> None:
    model, x = nn.Sequential(nn.Linear(3, 3), nn.ReLU()), torch.randn(2, 3)
    layers = {"first": model[0], "second": model[1]}
    natural = {"first": [torch.full((2, 3), 5.0)]}
    with torch.no_grad():
        noted = substitute(lambda: model(x), layers, natural)
        torch.testing.assert_close(noted["first"][0], model[0](x))
    assert torch.equal(noted["second"][0], torch.full((2, 3), 5.0))


def test_tensors_are_found_and_replaced_however_deep_they_lie() -> None:
    from collections import namedtuple

    a, b, c = torch.ones(1), torch.ones(2), torch.ones(3)
    Pair = namedtuple("Pair", "one other")
    output = {"ids": torch.tensor([1]), "nested": [(a, "text"), Pair(b, None)], "last": c}
    assert [tensor is found for tensor, found in zip((a, b, c), tensors_in(output), strict=True)] == [True] * 3
    assert first_tensor(output) is a
    assert first_tensor(("text", torch.tensor([1]))) is None
    new = torch.zeros(2)
    changed = with_new(output, b, new)
    assert changed["nested"][1].one is new
    assert type(changed["nested"][1]) is Pair
    assert changed["nested"][0][0] is a
    assert changed["last"] is c
