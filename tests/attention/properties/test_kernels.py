"""eager, sdpa and flex give the same when patched; attentions are the patched ones; flash where a GPU is at hand."""

import importlib.util
import warnings

import pytest
import torch
from attention.patching import hidden, perturb
from attention.small_models import IDS, small_bert, small_llama
from torch import nn
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from gssf_plug.attention import patch_attention

MASK = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7])


def wide_llama() -> LlamaForCausalLM:
    """Heads of 16: the least that flex takes."""
    config = LlamaConfig(
        vocab_size=64, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=40, initializer_range=0.2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def wide_bert() -> BertModel:
    config = BertConfig(
        vocab_size=64, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40,
        initializer_range=0.3,
    )  # fmt: skip
    return BertModel(config, add_pooling_layer=False).eval()


@pytest.mark.parametrize("sites", ["projection", "score"])
@pytest.mark.parametrize("make", [small_llama, small_bert])
def test_eager_and_sdpa_agree(make: object, sites: str) -> None:
    model = make()
    patch = patch_attention(model, block_size=4, sites=sites)
    perturb(patch, 0.5)
    outputs = {}
    for backend in ("eager", "sdpa"):
        model.set_attn_implementation(backend)
        outputs[backend] = hidden(model, IDS, attention_mask=MASK)[MASK.bool()]
    torch.testing.assert_close(outputs["eager"], outputs["sdpa"], atol=1e-5, rtol=1e-5)
    with patch.disabled():
        assert not torch.allclose(hidden(model, IDS, attention_mask=MASK)[MASK.bool()], outputs["sdpa"], atol=1e-2)


@pytest.mark.compile
@pytest.mark.parametrize("sites", ["projection", "score"])
def test_flex_agrees_without_gradients(sites: str) -> None:
    """flex compiles its kernel, and on a CPU it has no backward."""
    model = wide_llama()
    patch = patch_attention(model, block_size=4, sites=sites)
    perturb(patch, 0.5)
    expected = hidden(model, IDS, attention_mask=MASK)[MASK.bool()]
    model.set_attn_implementation("flex_attention")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own
        got = hidden(model, IDS, attention_mask=MASK)[MASK.bool()]
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sites", ["projection", "score"])
def test_attentions_are_the_patched_ones(sites: str) -> None:
    model = small_bert().double()
    model.set_attn_implementation("eager")
    patch = patch_attention(model, block_size=4, sites=sites)
    perturb(patch, 0.5)
    with torch.no_grad():
        output = model(IDS, output_attentions=True, output_hidden_states=True)
        for number, (name, layer) in enumerate(patch.layers.items()):
            x, owner = output.hidden_states[number], model.get_submodule(name)
            with patch.disabled():
                q, k = (p(x).unflatten(-1, (4, 8)).transpose(1, 2) for p in (owner.query, owner.key))
            whole = layer.metric_layer.metric().matrix()
            each = torch.stack([whole[8 * h : 8 * h + 8, 8 * h : 8 * h + 8] for h in range(4)])
            wanted = (torch.einsum("bhti,hij,bhsj->bhts", q, each, k) / 8**0.5).softmax(-1)
            torch.testing.assert_close(output.attentions[number], wanted, atol=1e-6, rtol=1e-6)
        with patch.disabled():
            plain = model(IDS, output_attentions=True).attentions
    assert all(not torch.allclose(a, b, atol=1e-2) for a, b in zip(plain, output.attentions, strict=True))


@pytest.mark.skipif(
    not torch.cuda.is_available() or importlib.util.find_spec("flash_attn") is None,
    reason="flash attention runs on a GPU with the flash-attn package only",
)
@pytest.mark.parametrize("sites", ["projection", "score"])
@pytest.mark.parametrize("make", [wide_llama, wide_bert])
def test_flash_agrees(make: object, sites: str) -> None:
    model: nn.Module = make().to("cuda", torch.bfloat16)
    patch = patch_attention(model, block_size=4, sites=sites)
    perturb(patch, 0.5)
    ids, mask = IDS.cuda(), MASK.cuda()
    expected = hidden(model, ids, attention_mask=mask)[mask.bool()]
    model.set_attn_implementation("flash_attention_2")
    got = hidden(model, ids, attention_mask=mask)[mask.bool()]
    torch.testing.assert_close(got, expected, atol=5e-2, rtol=5e-2)
