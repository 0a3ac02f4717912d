"""patch_attention: neutral, alive, exact; and every mistake named."""

import copy
import re
from collections.abc import Callable

import pytest
import torch
from attention.patching import hidden, perturb
from attention.small_models import small_bert
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    GPTNeoXConfig,
    GPTNeoXModel,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Model,
)

from gssf_plug.attention import AttentionPatch, patch_attention
from gssf_plug.errors import ArgumentError


@pytest.mark.parametrize("terms", [("diagonal",), ("block_diagonal",), ("diagonal", "block_diagonal"), ("dense",)])
@pytest.mark.parametrize("per_head", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_neutral_to_the_bit_then_alive(
    llama: LlamaForCausalLM, ids: Tensor, terms: tuple[str, ...], per_head: bool, dtype: torch.dtype
) -> None:
    llama.to(dtype)
    before = hidden(llama, ids)
    patch = patch_attention(llama, terms=terms, block_size=4, per_head=per_head)
    assert torch.equal(hidden(llama, ids), before)
    perturb(patch)
    assert not torch.allclose(hidden(llama, ids), before, atol=1e-2)
    assert all(parameter.dtype == torch.float32 for parameter in patch.parameters())


def test_the_score_is_q_a_k(bert: BertModel, ids: Tensor) -> None:
    """Against attention written out in float64, with A built head by head."""
    bert.double()
    attention = bert.encoder.layer[0].attention.self
    patch = patch_attention(bert, block_size=4, layers=["encoder.layer.0"])
    perturb(patch)
    seen = []
    attention.register_forward_hook(lambda module, arguments, output: seen.append((arguments[0], output[0])))
    hidden(bert, ids)
    x, got = seen[0]
    matrix = attention.gssf.metric().matrix().detach()
    heads = []
    for head in range(4):
        rows = slice(8 * head, 8 * head + 8)
        q, k, v = (p(x)[..., rows] for p in (lambda x: x @ attention.query.weight.T + attention.query.bias,
                                             attention.key, attention.value))  # fmt: skip
        score = torch.einsum("bti,ij,bsj->bts", q, matrix[rows, rows], k) / 8**0.5
        heads.append(score.softmax(-1) @ v)
    assert torch.count_nonzero(matrix[:8, 8:]) == 0
    torch.testing.assert_close(got, torch.cat(heads, -1), rtol=1e-10, atol=1e-10)


def test_gradients_equal_finite_differences(bert: BertModel, ids: Tensor) -> None:
    bert.double()
    patch = patch_attention(bert, block_size=4, layers=[1], per_head=False)
    perturb(patch)
    weights = dict(patch.named_parameters())

    def loss(*values: Tensor) -> Tensor:
        return torch.func.functional_call(bert, dict(zip(weights, values, strict=True)), (ids,))[0].pow(3).mean()

    assert torch.autograd.gradcheck(loss, tuple(weights.values()), atol=1e-7)


def test_plain_checkpoint_of_a_patched_model_holds_the_base(bert: BertModel, ids: Tensor, tmp_path: object) -> None:
    before = hidden(bert, ids)
    perturb(patch_attention(bert, block_size=4))
    bert.save_pretrained(tmp_path)
    plain = BertModel.from_pretrained(tmp_path, add_pooling_layer=False).eval()
    assert torch.equal(hidden(plain, ids), before)


@pytest.mark.parametrize(
    ("layers", "patched"),
    [
        ([1], ["encoder.layer.1.attention.self"]),
        (["encoder.layer.0"], ["encoder.layer.0.attention.self"]),
        (["encoder.layer.*.attention.self"], ["encoder.layer.0.attention.self", "encoder.layer.1.attention.self"]),
    ],
)
def test_layers_select(bert: BertModel, layers: list[str | int], patched: list[str]) -> None:
    patch = patch_attention(bert, block_size=4, layers=layers)
    assert list(patch.layers) == patched
    assert patch.summary().count("not among `layers`") == 2 - len(patched)


def test_the_query_norm_is_before_or_after(qwen: Qwen3Model, ids: Tensor) -> None:
    after = patch_attention(qwen, block_size=4)
    assert "after q_norm" in after.summary()
    assert "only a diagonal folds" in after.summary()
    after.remove()
    before = patch_attention(qwen, block_size=4, query_norm="before")
    assert "q_proj" in before.summary()
    assert before.summary().count("yes      yes") == 2
    perturb(before)


def test_generation_with_a_cache_equals_generation_without(llama: LlamaForCausalLM, ids: Tensor) -> None:
    perturb(patch_attention(llama, block_size=4))
    options = {"max_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(ids), "pad_token_id": 0}
    cached = llama.generate(ids, use_cache=True, **options)
    assert torch.equal(cached, llama.generate(ids, use_cache=False, **options))


def test_multihead_attention_of_torch_with_its_fast_path() -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, dropout=0.0).eval()
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    x = torch.randn(2, 5, 16)
    with torch.no_grad():
        before = model(x)
        patch = patch_attention(model, block_size=2, example_inputs={"src": x})
        assert torch.allclose(model(x), before, atol=1e-6)
        perturb(patch)
        after = model(x)
        assert not torch.allclose(after, before, atol=1e-3)
        patch.merge()
        assert torch.allclose(model(x), after, atol=1e-5)
        patch.unmerge()
    model(x).sum().backward()
    assert all(parameter.grad is not None for parameter in patch.parameters())
    patch.remove()
    assert torch.allclose(model(x), before, atol=1e-6)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_size": 3}, "`block_size` must divide the head dimension 8 of 'encoder.layer.0.attention.self', but"),
        ({"terms": "diagonal"}, "`terms` must be a tuple of different term names, but got 'diagonal'. Choose from"),
        ({"layers": ["encoder.layer.7"]}, "`layers` must name attention modules, but got 'encoder.layer.7'. Did you"),
        ({"layers": "encoder"}, "`layers` must be a sequence"),
        ({"dtype": "float32"}, "`dtype` must be a floating-point dtype of torch, but got 'float32'"),
        ({"adapter_name": "a.b"}, "`adapter_name` must be a plain name"),
        ({"example_inputs": {"input_ids": None}}, "`example_inputs` must run the model"),
        (
            {"example_inputs": {"input_ids": torch.tensor([[5]])}},
            "`example_inputs` must show each layer two or more tokens to attend to, but got some with which "
            "'encoder.layer.0.attention.self' (1 more like it) was not proven",
        ),
    ],
)
def test_mistakes_are_named_and_the_model_is_untouched(
    bert: BertModel, ids: Tensor, options: dict[str, object], message: str
) -> None:
    before, keys = hidden(bert, ids), list(bert.state_dict())
    with pytest.raises(ArgumentError, match=re.escape(message)):
        patch_attention(bert, **{"block_size": 4, **options})
    assert list(bert.state_dict()) == keys
    assert torch.equal(hidden(bert, ids), before)
    assert not any(module._forward_hooks for module in bert.modules())


def test_terms_and_layers_come_in_any_collection(bert: BertModel) -> None:
    patch = patch_attention(bert, terms=(term for term in ("diagonal",)), layers=(number for number in (0,)))
    assert [name for name, _ in patch.named_parameters()] == [
        "encoder.layer.0.attention.self.gssf.adapters.default.structures.diagonal.weight"
    ]


def test_the_block_sizes_offered_divide_the_heads_of_all_layers() -> None:
    narrow = BertModel(BertConfig(vocab_size=64, hidden_size=24, num_hidden_layers=1, num_attention_heads=4))
    with pytest.raises(ArgumentError, match=r"the head dimension 6 of '1.encoder.*but got 4. Use one of \[1, 2\]"):
        patch_attention(nn.Sequential(small_bert(), narrow), block_size=4)


def test_patching_twice_is_refused(bert: BertModel, ids: Tensor) -> None:
    patch = patch_attention(bert, block_size=4)
    perturb(patch)
    before = hidden(bert, ids)
    with pytest.raises(ArgumentError, match="`adapter_name` must be new; the model is patched already"):
        patch_attention(bert, block_size=4)
    assert torch.equal(hidden(bert, ids), before)


@pytest.mark.bad_input
def test_wrong_models_are_refused(bert: BertModel) -> None:
    with pytest.raises(ArgumentError, match="be patched before it is compiled or wrapped, but got a OptimizedModule"):
        patch_attention(torch.compile(bert, backend="eager"), block_size=4)
    with pytest.raises(ArgumentError, match="but got a DataParallel"):
        patch_attention(nn.DataParallel(bert), block_size=4)
    for wrapper in ("DistributedDataParallel", "FullyShardedDataParallel"):
        wrapped = type(wrapper, (nn.DataParallel,), {})(bert)  # the real ones need processes
        with pytest.raises(ArgumentError, match=f"but got a {wrapper}. Patch model.module"):
            patch_attention(wrapped, block_size=4)
    with pytest.raises(ArgumentError, match="have its weights in memory"):
        patch_attention(copy.deepcopy(bert).to("meta"), block_size=4)
    with pytest.raises(ArgumentError, match="have attention with a query and a key"):
        patch_attention(nn.Linear(3, 3), block_size=4)
    with pytest.raises(ArgumentError, match="be a torch.nn.Module, but got str"):
        patch_attention("bert")
    with pytest.raises(ArgumentError, match="`model` must be patched, but got a plain BertModel"):
        AttentionPatch(bert)


def neox() -> GPTNeoXModel:
    """Its queries lie between keys and values: they are taken by indices."""
    config = GPTNeoXConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=40,
        initializer_range=0.3, use_cache=False,
    )  # fmt: skip
    return GPTNeoXModel(config).eval()


@pytest.mark.compile
@pytest.mark.parametrize("make", [small_bert, neox])
def test_compiles_whole_and_exports(make: Callable[[], PreTrainedModel], ids: Tensor) -> None:
    model = make()
    perturb(patch_attention(model, block_size=4))
    expected = hidden(model, ids)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(hidden(compiled, ids), expected)
    exported = torch.export.export(model, (ids,), strict=False).module()
    torch.testing.assert_close(exported(ids)[0], expected)
