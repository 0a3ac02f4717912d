"""sites="score": exactly qᵀAk in the logits, on every backend, for this model alone; what merges and what does not."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from attention.patching import hidden, perturb
from attention.small_models import IDS, small_bert, small_llama, small_qwen
from tools.sweep import difference, find_calls, outputs
from tools.tiny import tiny_model
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    GPT2Config,
    GPT2Model,
    LlamaForCausalLM,
    Qwen3Model,
    ViTConfig,
    ViTModel,
)
from transformers.models.llama.modeling_llama import (
    apply_rotary_pos_emb,
)

from gssf_plug.attention import AttentionPatch, load_attention, patch_attention
from gssf_plug.errors import ArgumentError, CheckpointError

PADDED = {"input_ids": IDS, "attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7])}


def small_gpt2() -> GPT2Model:
    config = GPT2Config(vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3)
    return GPT2Model(config).eval()


def small_vit() -> ViTModel:
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40, image_size=16, patch_size=8,
        initializer_range=0.3,
    )  # fmt: skip
    return ViTModel(config, add_pooling_layer=False).eval()


def heads(x: Tensor, count: int = 4) -> Tensor:
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def rotated(layer: nn.Module, x: Tensor, options: dict[str, object]) -> tuple[Tensor, Tensor]:
    """q and k of a Llama or Qwen3 layer as they meet: normalised and rotated."""
    q, k = heads(layer.q_proj(x)), heads(layer.k_proj(x), 2)
    if hasattr(layer, "q_norm"):
        q, k = layer.q_norm(q), layer.k_norm(k)
    q, k = apply_rotary_pos_emb(q, k, *options["position_embeddings"])
    return q, k.repeat_interleave(2, dim=1)


def plain(layer: nn.Module, x: Tensor, options: dict[str, object]) -> tuple[Tensor, Tensor]:
    query, key = (getattr(layer, a, None) or getattr(layer, b) for a, b in (("query", "q_proj"), ("key", "k_proj")))
    return heads(query(x)), heads(key(x))


def fused(layer: nn.Module, x: Tensor, options: dict[str, object]) -> tuple[Tensor, Tensor]:
    q, k, _ = layer.c_attn(x).chunk(3, dim=-1)
    return heads(q), heads(k)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize(
    ("make", "meet", "causal"),
    [
        (small_llama, rotated, True),
        (small_qwen, rotated, True),
        (small_bert, plain, False),
        (small_gpt2, fused, True),
        (small_vit, plain, False),
    ],
)
def test_the_logits_are_q_a_k(make: object, meet: object, causal: bool, backend: str) -> None:
    """Against attention written out in float64, with A built head by head; eager softmax is float32 in some models."""
    model = make().double()
    model.set_attn_implementation(backend)
    patch = patch_attention(model, block_size=4, sites="score", layers=[1])
    perturb(patch)
    (layer,) = patch.layers.values()
    seen = []
    layer.owner.register_forward_hook(lambda *call: seen.append(call[1:]), with_kwargs=True)
    if isinstance(model, ViTModel):
        hidden(model, torch.randn(2, 3, 16, 16, dtype=torch.float64))
    else:
        hidden(model, IDS, use_cache=False)
    arguments, options, output = seen[0]
    x = arguments[0] if arguments else options["hidden_states"]
    q, k = meet(layer.owner, x, options)
    matrix = layer.metric_layer.metric().matrix().detach()
    each = torch.stack([matrix[8 * h : 8 * h + 8, 8 * h : 8 * h + 8] for h in range(4)])
    logits = torch.einsum("bhti,hij,bhsj->bhts", q, each, k) / 8**0.5
    if causal:
        logits = logits.masked_fill(torch.ones(logits.shape[-2:]).triu(1).bool(), float("-inf"))
    wanted = logits.softmax(-1)
    if backend == "eager":
        torch.testing.assert_close(output[1], wanted, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(wanted, (q @ k.mT / 8**0.5).softmax(-1), atol=1e-2)
    with patch.disabled():
        assert not torch.allclose(layer.owner(*arguments, **options)[0], output[0], atol=1e-3)
    mixed = wanted @ _values(layer.owner, x)
    torch.testing.assert_close(output[0], _out(layer.owner, mixed.transpose(1, 2).flatten(-2)), rtol=1e-6, atol=1e-6)


def _values(layer: nn.Module, x: Tensor) -> Tensor:
    if hasattr(layer, "c_attn"):
        return heads(layer.c_attn(x).chunk(3, dim=-1)[2])
    projection = getattr(layer, "value", None) or layer.v_proj
    rows = projection(x)
    return heads(rows) if rows.shape[-1] == 32 else heads(rows, 2).repeat_interleave(2, dim=1)


def _out(layer: nn.Module, mixed: Tensor) -> Tensor:
    projection = next((getattr(layer, name) for name in ("o_proj", "c_proj") if hasattr(layer, name)), nn.Identity())
    return projection(mixed)


@pytest.mark.parametrize(
    ("model_type", "backend"),
    [
        *((name, "eager") for name in ("phi3", "whisper", "clip", "t5gemma", "modernbert", "qwen2_vl", "deepseek_v3")),
        *((name, "sdpa") for name in ("gemma3_text", "bart")),
    ],
)
def test_neutral_to_the_bit_alive_and_removed(model_type: str, backend: str) -> None:
    model = tiny_model(model_type)
    model.set_attn_implementation(backend)
    calls, keys = find_calls(model), list(model.state_dict())
    with torch.no_grad():
        before = outputs(model, calls)
        patch = patch_attention(model, block_size=2, sites="score")
        assert difference(before, outputs(model, calls)) == 0.0
        perturb(patch, 0.5)
        assert difference(before, outputs(model, calls)) > 1e-4
        with patch.disabled():
            assert difference(before, outputs(model, calls)) == 0.0
        patch.remove()
        assert difference(before, outputs(model, calls)) == 0.0
    assert list(model.state_dict()) == keys


def test_a_padded_batch_keeps_its_mask(llama: LlamaForCausalLM) -> None:
    """Rows of a left-padded batch equal the rows alone; a name without its mask function fails this by 0.2 (F1)."""
    patch = patch_attention(llama, block_size=4, sites="score")
    perturb(patch)
    alone = hidden(llama, IDS[:1, 2:])
    for backend in ("eager", "sdpa"):
        llama.set_attn_implementation(backend)
        positions = torch.tensor([[0, 0, 0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5, 6]])
        batch = hidden(llama, IDS, attention_mask=PADDED["attention_mask"], position_ids=positions)
        torch.testing.assert_close(batch[:1, 2:], alone, atol=2e-5, rtol=1e-4)


def test_the_name_is_registered_with_its_mask(llama: LlamaForCausalLM) -> None:
    patch_attention(llama, block_size=4, sites="score").remove()
    assert {"gssf|sdpa"} <= AttentionInterface._global_mapping.keys() & AttentionMaskInterface._global_mapping.keys()
    assert AttentionMaskInterface()["gssf|sdpa"] is AttentionMaskInterface()["sdpa"]
    expected = llama(**PADDED)[0]
    llama.set_attn_implementation("gssf|sdpa")  # by hand, on a model that is not patched
    assert torch.equal(llama(**PADDED)[0], expected)


def test_other_models_are_untouched_even_with_the_same_configuration() -> None:
    model = small_llama()
    other = LlamaForCausalLM(model.config).eval()
    assert other.config is model.config
    before = hidden(other, IDS)
    patch = patch_attention(model, block_size=4, sites="score")
    perturb(patch)
    changed = hidden(model, IDS)
    assert torch.equal(hidden(other, IDS), before)
    assert other.config._attn_implementation == model.config._attn_implementation == "sdpa"
    assert other.model.layers[0].self_attn.config is model.config
    patch.remove()
    assert model.model.layers[0].self_attn.config is model.config
    assert not torch.allclose(hidden(model, IDS), changed, atol=1e-2)


def test_it_stands_on_whatever_backend_is_set_later(llama: LlamaForCausalLM) -> None:
    patch = patch_attention(llama, block_size=4, sites="score")
    perturb(patch)
    expected = hidden(llama, IDS)
    calls = []

    def flash(layer: nn.Module, query: Tensor, *rest: object, **options: object) -> tuple[Tensor, None]:
        calls.append((layer.config._attn_implementation, layer.layer_idx, query.shape))
        return AttentionInterface()["sdpa"](layer.layer, query, *rest, **options)

    AttentionInterface.register("flash of a test", flash)
    AttentionMaskInterface.register("flash of a test", AttentionMaskInterface()["sdpa"])
    for backend in ("eager", "flash of a test"):
        llama.config._attn_implementation = backend
        torch.testing.assert_close(hidden(llama, IDS), expected, atol=1e-5, rtol=1e-5)
    assert calls == [("flash of a test", layer, (2, 4, 7, 8)) for layer in (0, 1)]


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_copies_carry_their_own(llama: LlamaForCausalLM, ids: Tensor, way: str) -> None:
    patch = patch_attention(llama, block_size=4, sites="score")
    perturb(patch)
    here = hidden(llama, ids)
    twin = copy.deepcopy(llama) if way == "deepcopy" else pickle.loads(pickle.dumps(llama))
    assert twin.model.layers[0].self_attn.config.base is twin.config
    other = AttentionPatch(twin)
    perturb(other)
    assert torch.equal(hidden(llama, ids), here)
    assert not torch.equal(hidden(twin, ids), here)
    other.remove()
    patch.remove()
    assert torch.equal(hidden(llama, ids), hidden(twin, ids))


def test_several_adapters_files_and_plain_checkpoints(llama: LlamaForCausalLM, ids: Tensor, tmp_path: Path) -> None:
    before = hidden(llama, ids)
    patch = patch_attention(llama, block_size=4, sites="score")
    perturb(patch)
    first = hidden(llama, ids)
    patch = patch_attention(llama, terms=("dense",), sites="score", per_head=False, adapter_name="second")
    perturb(patch)
    second = hidden(llama, ids)
    patch.set_adapter("default")
    assert torch.equal(hidden(llama, ids), first)
    patch.save_pretrained(tmp_path / "first")
    patch.save_pretrained(tmp_path / "second", adapter_name="second")
    llama.save_pretrained(tmp_path / "plain")
    fresh = LlamaForCausalLM.from_pretrained(tmp_path / "plain").eval()
    assert torch.equal(hidden(fresh, ids), before)
    loaded = load_attention(fresh, tmp_path / "first")
    assert torch.equal(hidden(fresh, ids), first)
    loaded = load_attention(fresh, tmp_path / "second", adapter_name="other")
    assert loaded.adapter_names == ("default", "other")
    assert torch.equal(hidden(fresh, ids), second)
    assert "score" in loaded.summary()
    with pytest.raises(CheckpointError, match="has number of heads 4"):
        load_attention(LlamaForCausalLM(type(llama.config)(**{**llama.config.to_dict(), "num_attention_heads": 2,
                       "num_key_value_heads": 2, "head_dim": 16})), tmp_path / "first")  # fmt: skip


def test_only_the_metric_trains(llama: LlamaForCausalLM, ids: Tensor) -> None:
    patch = patch_attention(llama, block_size=4, sites="score")
    patch.freeze_base()
    llama(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in patch.parameters())
    assert all(p.grad is None for n, p in llama.named_parameters() if ".gssf." not in n)


@pytest.mark.parametrize("make", [small_bert, small_gpt2, small_vit])
def test_where_nothing_lies_between_it_merges(make: object) -> None:
    model = make()
    x = torch.randn(2, 3, 16, 16) if isinstance(model, ViTModel) else IDS
    before, keys = hidden(model, x), list(model.state_dict())
    patch = patch_attention(model, block_size=4, sites="score")
    perturb(patch)
    patched = hidden(model, x)
    assert patch.summary().count("  yes\n") == 2
    patch.merge()
    assert list(model.state_dict()) == keys
    torch.testing.assert_close(hidden(model, x), patched, atol=1e-5, rtol=1e-5)
    with patch.disabled():
        assert torch.equal(hidden(model, x), before)
    patch.unmerge()
    assert torch.equal(hidden(model, x), patched)
    patch.remove()
    assert torch.equal(hidden(model, x), before)


def test_behind_a_rotation_merging_is_refused(llama: LlamaForCausalLM, ids: Tensor) -> None:
    patch = patch_attention(llama, block_size=4, sites="score")
    perturb(patch)
    patched, weights = hidden(llama, ids), copy.deepcopy(llama.state_dict())
    with pytest.raises(
        ArgumentError, match=r"self_attn' \(2 of 2 layers\), where rotary embedding .* does not commute"
    ):
        patch.merge()
    assert patch.summary().count("rotary embedding") == 2
    assert torch.equal(hidden(llama, ids), patched)
    assert all(torch.equal(value, weights[name]) for name, value in llama.state_dict().items())


@pytest.mark.parametrize("tied", [True, False])
def test_what_commutes_with_the_rotation_merges(llama: LlamaForCausalLM, ids: Tensor, tied: bool) -> None:
    """A diagonal that is the same for both channels of each rotated pair (F5), and one that is not."""
    patch = patch_attention(llama, terms=("diagonal",), sites="score")
    with torch.no_grad():
        for parameter in patch.parameters():
            pairs = torch.rand(4, 1, 4).add(0.5).expand(4, 2, 4)  # head, half, pair
            parameter.copy_((pairs if tied else pairs * torch.tensor([[1.0], [1.01]])).reshape(-1))
    patched = hidden(llama, ids)
    if tied:
        patch.merge()
        torch.testing.assert_close(hidden(llama, ids), patched, atol=1e-5, rtol=1e-5)
    else:
        with pytest.raises(ArgumentError, match="does not commute with it; patch with sites='projection' to merge"):
            patch.merge()


def test_one_factor_folds_into_the_query_norm(qwen: Qwen3Model, ids: Tensor) -> None:
    patch = patch_attention(qwen, terms=("diagonal",), sites="score", per_head=False)
    with torch.no_grad():
        for parameter in patch.parameters():
            parameter.fill_(1.5)
    patched = hidden(qwen, ids)
    assert {layer.into for layer in patch.merge().layers} == {"q_norm"}
    torch.testing.assert_close(hidden(qwen, ids), patched, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("sites", "relative"), [("projection", True), ("score", False)])
def test_what_rotary_positions_mean_to_each_site(llama: LlamaForCausalLM, sites: str, relative: bool) -> None:
    """Before the rotation only distances matter; behind it the position itself does, too."""
    perturb(patch_attention(llama, block_size=4, sites=sites), 0.5)
    here, there = (hidden(llama, IDS, position_ids=torch.arange(7)[None] + start) for start in (0, 11))
    assert torch.allclose(here, there, atol=1e-4) == relative
