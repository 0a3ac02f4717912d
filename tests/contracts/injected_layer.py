"""What every layer that is injected into a model's attention must hold, inherited by a test class for each place.

A subclass makes a plain model and says how its attention reads; the slow reference writes the logits of one attention
module out head by head in float64, from the projections of the untouched model, and shares nothing with the library's
layouts. Whatever a metric may do to a model is tried here on the injected layer itself, beneath `AttentionPatch`.
"""

import copy
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import pytest
import torch
from attention.object_graph import object_graph
from attention.patching import perturb
from torch import Tensor, nn

from gssf_plug.attention import AttentionPatch, patch_attention
from gssf_plug.attention.query_layer import CHILD, LayerMetric

HEADS, SIZE = 4, 8


class InjectedLayerContract:
    kind: ClassVar[type[LayerMetric]]
    options: ClassVar[dict[str, Any]] = {}
    causal: ClassVar[bool] = False
    culprit: ClassVar[str] = ""  # a module of the attention module that runs behind the query

    def model(self) -> nn.Module:
        """A small model with HEADS heads of SIZE channels in two layers, eager, with weights far from zero."""
        raise NotImplementedError

    def run(self, model: nn.Module) -> Tensor:
        """Its output on a fixed input, with gradients where these are on."""
        raise NotImplementedError

    def logits(self, owner: nn.Module, call: tuple[tuple[Any, ...], dict[str, Any]], matrices: Tensor) -> Tensor:
        """The scores of an untouched attention module by hand, where `matrices` (HEADS, SIZE, SIZE) holds each A."""
        raise NotImplementedError

    def weights(self, output: Any) -> Tensor:
        """The attention weights in what an attention module returns."""
        return output[1]

    def break_it(self, owner: nn.Module, layer: LayerMetric) -> None:
        """What a tool may do to an attention module so that its query no longer passes the injected layer."""
        raise NotImplementedError

    def interrupt(self, *_: object, **__: object) -> None:
        raise KeyboardInterrupt

    @contextmanager
    def interrupted(self, owner: nn.Module) -> Iterator[None]:
        """Inside the context a forward of `owner` is cut off in its middle."""
        handle = owner.get_submodule(self.culprit).register_forward_hook(self.interrupt)
        try:
            yield
        finally:
            handle.remove()

    def patched(self, model: nn.Module, *, scale: float = 0.3, **options: Any) -> AttentionPatch:
        patch = patch_attention(model, **{"block_size": 4, **self.options, **options})
        assert all(type(layer.metric_layer) is self.kind for layer in patch.layers.values())
        torch.manual_seed(5)
        perturb(patch, scale)
        return patch

    def first(self, patch: AttentionPatch) -> tuple[nn.Module, LayerMetric]:
        layer = next(iter(patch.layers.values()))
        return layer.owner, layer.metric_layer

    @pytest.mark.parametrize("per_head", [True, False])
    def test_each_head_scores_by_its_own_matrix(self, per_head: bool) -> None:
        model = self.model().double()
        patch = self.patched(model, per_head=per_head)
        owner, layer = self.first(patch)
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        outputs: list[Any] = []
        handle = owner.register_forward_hook(
            lambda _, *call: (calls.append(call[:2]), outputs.append(call[2]), None)[-1], with_kwargs=True
        )
        self.run(model)
        handle.remove()
        metric = layer.acting()
        assert metric is not None
        matrix = metric.matrix().detach()
        squares = [matrix[h * SIZE : h * SIZE + SIZE, h * SIZE : h * SIZE + SIZE] for h in range(HEADS)]
        matrices = torch.stack(squares if per_head else [matrix] * HEADS)
        patch.remove()
        with torch.no_grad():
            scores, plain = (
                self.logits(owner, calls[0], m) for m in (matrices, torch.eye(SIZE).expand_as(matrices).to(matrices))
            )
        ahead = torch.ones(scores.shape[-2:]).triu(1).bool() & self.causal
        wanted, other = (one.masked_fill(ahead, float("-inf")).softmax(-1) for one in (scores, plain.double()))
        # some models take their softmax in float32, whatever they compute in
        torch.testing.assert_close(self.weights(outputs[0]).double(), wanted, rtol=1e-5, atol=1e-6)
        assert (wanted - other).abs().max() > 1e-2

    def test_a_neutral_metric_changes_nothing_to_the_bit(self) -> None:
        model = self.model()
        before = self.run(model)
        self.patched(model, scale=0.0)
        assert torch.equal(self.run(model), before)

    def test_a_disabled_one_changes_nothing_to_the_bit(self) -> None:
        model = self.model()
        before = self.run(model)
        patch = self.patched(model)
        after = self.run(model)
        assert (after - before).abs().max() > 1e-3
        for layer in patch.layers.values():
            layer.metric_layer.enabled = False
            assert layer.metric_layer.acting() is None
        assert torch.equal(self.run(model), before)
        for layer in patch.layers.values():
            layer.metric_layer.enabled = True
        assert torch.equal(self.run(model), after)

    def test_detached_leaves_nothing_and_attached_again_acts_again(self) -> None:
        model = self.model()
        self.run(model)
        before = object_graph(model)
        patch = self.patched(model)
        after = self.run(model)
        owner, layer = self.first(patch)
        layer.detach(owner)
        assert CHILD not in owner._modules
        layer.attach(owner)
        assert torch.equal(self.run(model), after)
        patch.remove()
        left = {name: value for name, value in object_graph(model).items() if before.get(name) != value}
        assert not left
        assert object_graph(model).keys() == before.keys()

    def test_the_model_s_own_keys_and_weights_stay(self) -> None:
        model = self.model()
        weights = {name: value.clone() for name, value in model.state_dict().items()}
        patch = self.patched(model)
        self.run(model)
        own = {name: value for name, value in model.state_dict().items() if f".{CHILD}." not in f".{name}"}
        assert own.keys() == weights.keys()
        assert all(torch.equal(value, weights[name]) for name, value in own.items())
        names = {name for name, _ in patch.named_parameters()}
        assert names == model.state_dict().keys() - own.keys()

    @pytest.mark.parametrize("twin", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
    def test_a_copy_of_the_model_carries_its_own(self, twin: Any) -> None:
        model = self.model()
        self.patched(model)
        before = self.run(model)
        other = twin(model)
        assert torch.equal(self.run(other), before)
        perturb(AttentionPatch(other), 0.5)
        assert (self.run(other) - before).abs().max() > 1e-3
        assert torch.equal(self.run(model), before)

    def test_one_adapter_acts_and_the_others_rest(self) -> None:
        model = self.model()
        patch = self.patched(model)
        first = self.run(model)
        self.patched(model, adapter_name="second", scale=0.5)
        second = self.run(model)
        assert (second - first).abs().max() > 1e-3
        owner, layer = self.first(patch)
        flags = {n: [p.requires_grad for p in metric.parameters()] for n, metric in layer.adapters.items()}
        assert not any(flags["default"])
        assert all(flags["second"])
        for name, wanted in (("default", first), ("second", second)):
            for one in patch.layers.values():
                one.metric_layer.activate(name)
            assert layer.metric() is layer.metric(name) is layer.adapters[name]
            assert torch.equal(self.run(model), wanted)

    def test_an_adapter_that_does_not_cover_the_layer_leaves_it_plain(self) -> None:
        model = self.model()
        before = self.run(model)
        patch = self.patched(model)
        for one in patch.layers.values():
            one.metric_layer.drop("default")
            one.metric_layer.drop("default")  # twice is once
            assert one.metric_layer.metric() is None
            assert one.metric_layer.acting() is None
        assert torch.equal(self.run(model), before)

    def test_gradients_reach_every_parameter_and_are_those_of_the_output(self) -> None:
        model = self.model().double()
        patch = self.patched(model)
        parameters = list(patch.parameters())
        directions = torch.randn_like(self.run(model).detach())
        (self.run(model) * directions).sum().backward()
        assert all(p.grad is not None and bool(p.grad.any()) for p in parameters)
        step, ends = 1e-5, []
        for sign in (1.0, -2.0):
            with torch.no_grad():
                for parameter in parameters:
                    parameter += sign * step * parameter.grad.sign()
                ends.append(float((self.run(model) * directions).sum()))
        slope = (ends[0] - ends[1]) / (2 * step)
        assert slope == pytest.approx(sum(float(p.grad.abs().sum()) for p in parameters), rel=1e-3)

    def test_rounding_the_model_rounds_no_metric(self) -> None:
        """A learned 1 + 1e-3 is 1 in bfloat16."""
        model = self.model()
        patch = self.patched(model, scale=1e-3)
        values = [parameter.detach().clone() for parameter in patch.parameters()]
        model.to(torch.bfloat16).float()
        assert all(torch.equal(now, value) for now, value in zip(patch.parameters(), values, strict=True))

    def test_an_interrupted_forward_leaves_the_layer_whole(self) -> None:
        model = self.model()
        patch = self.patched(model)
        before = self.run(model)
        with self.interrupted(self.first(patch)[0]), pytest.raises(KeyboardInterrupt):
            self.run(model)
        assert torch.equal(self.run(model), before)
        with patch.disabled():
            plain = self.run(model)
        patch.remove()
        assert torch.equal(self.run(model), plain)

    def test_it_says_where_its_query_no_longer_passes(self) -> None:
        model = self.model()
        owner, layer = self.first(self.patched(model))
        assert layer.lost(owner) == ""
        self.break_it(owner, layer)
        assert layer.lost(owner)

    def test_it_prints_its_heads_and_what_acts(self) -> None:
        _, layer = self.first(self.patched(self.model()))
        assert layer.layout in repr(layer)
        assert f"{HEADS} heads of {SIZE}" in repr(layer)
        assert "active='default'" in repr(layer)
