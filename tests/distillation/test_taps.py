"""FeatureTaps: what is read, masks, wrappers, checkpointing (F6), deep copies (F7), refusals."""

import copy
import gc
import warnings
import weakref

import pytest
import torch
from distillation.models import TinyCNN, bert, images, text
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils.checkpoint import checkpoint
from transformers import AlbertConfig, AlbertModel

from gssf_plug.distillation import FeatureTaps, Tap
from gssf_plug.distillation.module_paths import layer_paths
from gssf_plug.errors import ArgumentError
from gssf_plug.features import mean_pool

QUERY = "encoder.layer.0.attention.self.query"


def test_reads_what_output_hidden_states_gives():
    model, batch = bert(layers=3).eval(), text()
    with FeatureTaps(model, ["encoder.layer.*", "embeddings"]) as taps:
        output = model(**batch, output_hidden_states=True)
        assert list(taps.features) == ["encoder.layer.0", "encoder.layer.1", "encoder.layer.2", "embeddings"]
        for i in range(3):
            assert torch.equal(taps[f"encoder.layer.{i}"].tensor, output.hidden_states[i + 1])
            assert torch.equal(taps[f"encoder.layer.{i}"].mask, batch["attention_mask"].bool())


def test_the_model_is_not_edited():
    model, batch = bert().eval(), text()
    before, keys = model(**batch).last_hidden_state, list(model.state_dict())
    taps = FeatureTaps(model, {"a": QUERY})
    assert torch.equal(model(**batch).last_hidden_state, before)
    assert list(model.state_dict()) == keys
    taps.remove()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_outputs_pooling_and_tokens():
    model, batch = bert().eval(), text()
    taps = FeatureTaps(
        model,
        {
            "pooled": Tap("", pooling=mean_pool),
            "first": Tap("", output="last_hidden_state", token=0),
            "tuple": Tap("encoder.layer.1.attention", output=0),
            "unmasked": Tap("", masked=False),
        },
    )
    out = model(**batch).last_hidden_state
    assert torch.equal(taps["pooled"].tensor, mean_pool(out, batch["attention_mask"]))
    assert torch.equal(taps["first"].tensor, out[:, 0])
    assert taps["tuple"].tensor.shape == out.shape
    assert taps["pooled"].mask is taps["first"].mask is taps["unmasked"].mask is None
    ids, mask = batch["input_ids"], batch["attention_mask"]
    model(ids, mask)  # given by position
    assert torch.equal(taps["pooled"].tensor, mean_pool(out, mask))


def test_maps_have_no_mask():
    model = TinyCNN()
    taps = FeatureTaps(model, {"map": "stages.0"})
    model(**images())
    assert taps["map"].tensor.shape == (6, 6, 8, 8)
    assert taps["map"].mask is None


def test_one_record_per_forward_and_it_can_be_dropped():
    model = bert().eval()
    taps = FeatureTaps(model, ["encoder.layer.0"])
    model(**text(seed=1))
    first = weakref.ref(taps["encoder.layer.0"].tensor)
    model(**text(count=3))
    gc.collect()
    assert first() is None
    assert taps["encoder.layer.0"].tensor.shape[0] == 3
    model.encoder.layer[0](torch.randn(9, 2, 16))  # a part called on its own is not a forward of the model
    assert taps["encoder.layer.0"].tensor.shape[0] == 3
    taps.clear()
    with pytest.raises(ArgumentError, match=r"`encoder.layer.0` must have run in the last forward"):
        _ = taps.features


def test_a_forward_that_fails_does_not_leave_the_record_open():
    model = bert().eval()
    taps = FeatureTaps(model, ["encoder.layer.0"])
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.tensor([[99]]))
    model.encoder.layer[0](torch.randn(9, 2, 16))
    assert not taps._record


@pytest.mark.parametrize("path", [QUERY, "encoder.layer.0", "encoder.layer.1.output.dense"])
def test_recomputation_neither_duplicates_nor_overwrites(path):
    """Non-reentrant checkpointing runs inner modules again in backward: same record, same gradients as without."""
    batch, results = text(), []
    for checkpointing in (False, True):
        model = bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        taps = FeatureTaps(model, {"a": path})
        runs = []
        handle = model.get_submodule(path).register_forward_hook(lambda *_, runs=runs: runs.append(1))
        model(**batch)
        feature = taps["a"].tensor
        feature.square().mean().backward()
        assert taps["a"].tensor is feature
        handle.remove()
        inner = checkpointing and path != "encoder.layer.0"
        assert len(runs) == (2 if inner else 1)  # the recomputation really happened
        results.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert results[0].keys() == results[1].keys()
    assert any(grad.abs().max() > 0 for grad in results[0].values())
    for name, grad in results[0].items():
        torch.testing.assert_close(results[1][name], grad, msg=name)


def test_inside_a_reentrant_block_it_raises_and_on_its_output_it_trains():
    model = bert().train()
    model.activation_checkpointing_enable({"use_reentrant": True})
    taps = FeatureTaps(model, {"query": QUERY})
    with pytest.raises(ArgumentError, match=r"`query` must lie where gradients flow.*reentrant.*use_reentrant=False"):
        model(**text())
    taps.remove()
    taps = FeatureTaps(model, {"block": "encoder.layer.0"})
    model(**text())
    taps["block"].tensor.sum().backward()
    assert model.encoder.layer[0].attention.self.query.weight.grad is not None


def test_inside_a_plain_reentrant_checkpoint_it_raises():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = nn.Linear(4, 4)

        def forward(self, x):
            return checkpoint(self.block, x, use_reentrant=True)

    model = Model()
    with FeatureTaps(model, {"block": "block"}):
        with pytest.raises(ArgumentError, match="would silently train nothing"):
            model(torch.ones(2, 4, requires_grad=True))
        with torch.no_grad(), warnings.catch_warnings():  # without gradients anywhere nothing is lost
            warnings.simplefilter("ignore")
            model(torch.ones(2, 4))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft 0.21
def test_wrappers_change_nothing():
    batch, plain = text(), bert().eval()
    taps = FeatureTaps(plain, ["encoder.layer.1"])
    plain(**batch)
    expected = taps["encoder.layer.1"].tensor
    adapted = get_peft_model(bert(), LoraConfig(target_modules=["query"])).eval()
    extractor = get_peft_model(bert(), LoraConfig(target_modules=["query"], task_type="FEATURE_EXTRACTION")).eval()
    for wrapped in (nn.DataParallel(bert()).eval(), adapted, extractor):
        taps = FeatureTaps(wrapped, ["encoder.layer.1"])
        wrapped(**batch)
        torch.testing.assert_close(taps["encoder.layer.1"].tensor, expected)
        assert torch.equal(taps["encoder.layer.1"].mask, batch["attention_mask"].bool())


def test_wrappers_of_parts_change_nothing():
    """checkpoint_wrapper and compiled blocks put names into paths; taps go by those of the plain model."""
    batch, plain = text(), bert().eval()
    with FeatureTaps(plain, ["encoder.layer.*"]) as taps:
        plain(**batch)
        expected = taps.features
    model = bert()
    model.encoder.layer[0] = checkpoint_wrapper(model.encoder.layer[0])
    model.encoder.layer[1] = torch.compile(model.encoder.layer[1], backend="eager", disable=True)
    assert layer_paths(model) == ["encoder.layer.0", "encoder.layer.1"]
    taps = FeatureTaps(model.eval(), ["encoder.layer.*"])
    model(**batch)
    for name, feature in expected.items():
        torch.testing.assert_close(taps[name].tensor, feature.tensor)
    model.train()
    model(**batch)
    taps["encoder.layer.0"].tensor.sum().backward()
    assert model.encoder.layer[0].attention.self.query.weight.grad.abs().max() > 0


@pytest.mark.compile
def test_a_compiled_model_gives_the_same_features_and_gradients():
    batch, grads, values = text(), [], []
    for compiled in (False, True):
        model = bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        taps = FeatureTaps(model, ["encoder.layer.1"])
        run = torch.compile(model, backend="eager") if compiled else model
        for seed in (1, 0):
            run(**text(seed=seed))
        values.append(taps["encoder.layer.1"].tensor)
        values[-1].square().mean().backward()
        grads.append(model.encoder.layer[0].output.dense.weight.grad)
    torch.testing.assert_close(values[1], values[0])
    torch.testing.assert_close(grads[1], grads[0])
    assert batch


def test_a_deep_copy_feeds_its_own_taps():
    model = bert().eval()
    taps = FeatureTaps(model, ["encoder.layer.0"])
    model(**text())
    twin = copy.deepcopy(model)  # with a live graph in the record: it must not be copied
    model(**text(count=4))
    twin(**text(count=2))
    assert taps["encoder.layer.0"].tensor.shape[0] == 4


def test_refusals():
    with pytest.raises(ArgumentError, match=r"`a` must match one module, but got 'encoder.layer.\*', which matches 2"):
        FeatureTaps(bert(), {"a": "encoder.layer.*"})
    with pytest.raises(ArgumentError, match="Did you mean 'encoder.layer.0'"):
        FeatureTaps(bert(), {"a": "encoder.layer0"})
    for nothing in ({}, [], "encoder"):
        with pytest.raises(ArgumentError, match="`taps` must be a mapping"):
            FeatureTaps(bert(), nothing)
    with pytest.raises(ArgumentError, match="`token` must not be used together with pooling"):
        Tap("", pooling=mean_pool, token=0)
    model = bert()
    FeatureTaps(model, {"a": Tap("", output="logits")})
    with pytest.raises(ArgumentError, match=r"`output` must be a part of what '' returns, but got 'logits'"):
        model(**text())


def test_a_shared_module_is_refused():
    config = AlbertConfig(
        vocab_size=50, embedding_size=8, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8
    )
    model = AlbertModel(config)
    FeatureTaps(model, {"shared": "encoder.albert_layer_groups.0"})
    with pytest.raises(ArgumentError, match="`shared` must run once in a forward"):
        model(**text())


def test_a_mask_of_other_tokens_is_refused():
    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = nn.Identity()

        def forward(self, x, attention_mask):
            return self.part(x[:, ::2])

    model = Halves()
    taps = FeatureTaps(model, {"a": "part"})
    with pytest.raises(
        ArgumentError, match=r"`attention_mask` must have one value per token of 'part', shape \(2, 3\)"
    ):
        model(torch.ones(2, 6, 4), attention_mask=torch.ones(2, 6))
    taps.remove()
    taps = FeatureTaps(model, {"a": Tap("part", masked=False)})
    model(torch.ones(2, 6, 4), attention_mask=torch.ones(2, 6))
    assert taps["a"].mask is None
