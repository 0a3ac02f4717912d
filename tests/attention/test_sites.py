"""Which layers take a metric at which site: seen in a run, refused with the reason, and never mixed."""

import pytest
import torch
from attention.patching import hidden
from attention.small_models import PlainAttention, small_bert, small_llama
from tools.tiny import tiny_model
from torch import Tensor, nn
from transformers import BertModel, LlamaForCausalLM
from transformers.models.llama.modeling_llama import ALL_ATTENTION_FUNCTIONS, LlamaAttention, eager_attention_forward

from gssf_plug.attention import patch_attention
from gssf_plug.attention.discovery.prober import Prober
from gssf_plug.attention.query_layer import QueryMetric
from gssf_plug.attention.score_layer import ScoreMetric
from gssf_plug.attention.sites import arriving, make_metric_layers, patchable_modules, record_calls
from gssf_plug.errors import ArgumentError


@pytest.mark.parametrize("model_type", ["falcon", "bloom", "deberta"])
def test_models_outside_the_interface_are_refused(model_type: str) -> None:
    model = tiny_model(model_type)
    keys = list(model.state_dict())
    with pytest.raises(ArgumentError, match="computes its scores itself, not through .*AttentionInterface.*projection"):
        patch_attention(model, block_size=2, sites="score")
    assert list(model.state_dict()) == keys


def test_a_class_that_treats_names_in_its_own_way_is_refused(llama: LlamaForCausalLM, ids: Tensor) -> None:
    class Particular(LlamaAttention):
        def forward(self, hidden_states: Tensor, **options: object) -> object:
            assert ALL_ATTENTION_FUNCTIONS
            assert eager_attention_forward
            if self.config._attn_implementation not in ("eager", "sdpa"):
                hidden_states = 2 * hidden_states
            return super().forward(hidden_states, **options)

    llama.model.layers[0].self_attn.__class__ = Particular
    before = hidden(llama, ids)
    with pytest.raises(ArgumentError, match=r"self_attn.*does other things where the attention function has a name"):
        patch_attention(llama, block_size=4, sites="score", layers=[0])
    assert torch.equal(hidden(llama, ids), before)


def test_sites_do_not_mix(bert: BertModel) -> None:
    patch = patch_attention(bert, block_size=4, sites="score")
    with pytest.raises(
        ArgumentError, match="`sites` must be the same for all adapters of a model, but got 'projection'"
    ):
        patch_attention(bert, block_size=4, adapter_name="second")
    assert patch.adapter_names == ("default",)


def test_each_site_has_its_modules_and_its_metrics() -> None:
    model = nn.Sequential(small_bert(), PlainAttention())
    inner = [f"0.encoder.layer.{number}.attention.self" for number in range(2)]
    assert list(patchable_modules(model, "projection")) == list(patchable_modules(model, "score")) == [*inner, "1"]
    bert = small_bert()
    for sites, kind in (("projection", QueryMetric), ("score", ScoreMetric)):
        modules = patchable_modules(bert, sites)
        made = make_metric_layers(Prober(bert), modules, sites)
        assert list(made) == list(modules)
        assert {type(layer) for layer in made.values()} == {kind}
        assert {module.verdict for module in modules.values()} == {"proven"}
        assert {(layer.heads.query_heads, layer.heads.head_dim) for layer in made.values()} == {(4, 8)}
    assert not any(module._forward_hooks for module in bert.modules())  # nothing is attached
    assert not [name for name in bert.state_dict() if "gssf" in name]


def test_a_layer_out_of_reach_has_its_reason_and_no_metric() -> None:
    model = nn.Sequential(PlainAttention())
    modules = patchable_modules(model, "score")
    assert make_metric_layers(Prober(model, example_inputs={"input": torch.randn(1, 3, 8)}), modules, "score") == {}
    assert modules["0"].verdict == "out of reach"
    assert modules["0"].reason.startswith("PlainAttention computes its scores itself")


def test_a_recorded_call_shows_what_arrives_before_any_metric() -> None:
    model = small_llama()
    layer = model.model.layers[1].self_attn
    call = record_calls(model, {"model.layers.1.self_attn": layer})["model.layers.1.self_attn"]
    (query,) = arriving(layer, call)
    assert query.shape[1::2] == (4, 8)
    patch = patch_attention(model, block_size=4, sites="score")
    for parameter in patch.parameters():
        nn.init.normal_(parameter)
    assert torch.equal(arriving(layer, call)[0], query)
    assert record_calls(model, {}) == {}


class OverStates(nn.Module):
    """Attends over states at every position, as Inkling 2 does over those of its layers: tokens stand for heads."""

    def __init__(self, base: LlamaAttention) -> None:
        super().__init__()
        self.config, self.base, self.num_key_value_groups = base.config, base, 1

    def forward(self, hidden_states: Tensor, **options: object) -> object:
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        states = torch.stack([hidden_states, 2 * hidden_states], 2)
        mixed, _ = attend(self, hidden_states.unsqueeze(2), states, states, None, scaling=1.0)
        return self.base(mixed.squeeze(1), **options)


def test_heads_that_follow_the_input_are_left_alone(llama: LlamaForCausalLM, ids: Tensor) -> None:
    llama.model.layers[0].self_attn = OverStates(llama.model.layers[0].self_attn)
    before = [hidden(llama, ids), hidden(llama, ids[:, :5])]
    patch = patch_attention(llama, block_size=4, sites="score")
    reason = "the number or the size of the heads in its score follows the length of the input"
    assert patch.left_alone == {"model.layers.0.self_attn": reason}
    assert list(patch.layers) == ["model.layers.0.self_attn.base", "model.layers.1.self_attn"]
    for length, wanted in ((ids.shape[1], before[0]), (5, before[1])):
        assert torch.equal(hidden(llama, ids[:, :length]), wanted)


def test_other_heads_than_those_that_were_patched_are_named(llama: LlamaForCausalLM, ids: Tensor) -> None:
    patch = patch_attention(llama, block_size=4, sites="score")
    attention = llama.model.layers[1].self_attn
    with pytest.raises(ArgumentError, match=r"as many heads as when it was patched, 4 of 8, but got 8 of 4 in a Llama"):
        patch.layers["model.layers.1.self_attn"].owner.config.change(attention, torch.ones(1, 8, 3, 4))
