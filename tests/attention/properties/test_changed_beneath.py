"""Tools that change a model under the patch: what the metric does afterwards, and what the handle says of it."""

import logging
from pathlib import Path

import pytest
import torch
from attention.patching import hidden, perturb
from attention.small_models import IDS, small_bert, small_llama
from optimum.quanto import freeze, qint8, quantize
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.utils import parametrizations, prune
from transformers import BertModel, LlamaForCausalLM

from gssf_plug.attention import AttentionPatch, load_attention, patch_attention
from gssf_plug.attention.saving import _say_who_reads_it
from gssf_plug.errors import ArgumentError

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # by PEFT
EVERY_MODEL = pytest.mark.parametrize("make", [small_bert, small_llama])


def patched(model: nn.Module, **options: object) -> AttentionPatch:
    patch = patch_attention(model, block_size=4, **options)
    torch.manual_seed(0)
    perturb(patch)
    return patch


@EVERY_MODEL
def test_quanto_replaces_the_projections(make: type[nn.Module]) -> None:
    model = make()
    patch = patched(model)
    before = hidden(model, IDS)
    bare = float((hidden(make(), IDS) - before).abs().mean())
    quantize(model, weights=qint8)
    freeze(model)
    assert float((hidden(model, IDS) - before).abs().mean()) < 0.1 * bare  # int8's own error
    assert "lost" not in patch.summary()
    model(IDS)[0].square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in patch.parameters())


@pytest.mark.parametrize("how", ["unload", "merge_and_unload"])
@pytest.mark.parametrize("dora", [False, True], ids=["LoRA", "DoRA"])
def test_peft_leaves_from_beneath(how: str, dora: bool, llama: LlamaForCausalLM) -> None:
    wrapped = get_peft_model(llama, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], use_dora=dora)).eval()
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    patch = patched(wrapped.get_base_model())
    with_lora = hidden(wrapped, IDS)
    twin = small_llama()
    patched(twin)
    plain = getattr(wrapped, how)()
    wanted = with_lora if how == "merge_and_unload" else hidden(twin, IDS)
    torch.testing.assert_close(hidden(plain, IDS), wanted, atol=1e-4, rtol=1e-4)
    assert patch.enabled
    patch.merge()
    torch.testing.assert_close(hidden(plain, IDS), wanted, atol=1e-4, rtol=1e-4)


def test_pruned_and_reparametrised(bert: BertModel) -> None:
    patch = patched(bert)
    query = bert.encoder.layer[0].attention.self.query
    prune.l1_unstructured(query, "weight", amount=0.3)
    parametrizations.weight_norm(bert.encoder.layer[1].attention.self.query)
    with patch.disabled():
        bare = hidden(bert, IDS)
    assert not torch.allclose(hidden(bert, IDS), bare, atol=1e-2)
    assert patch.summary().count(" yes ") == 2  # acting


@pytest.mark.parametrize("sites", ["projection", "score"])
def test_what_cannot_be_kept_is_said_in_every_call(sites: str, bert: BertModel, tmp_path: Path) -> None:
    patch = patched(bert, sites=sites)
    bert.encoder.layer[0].attention.self = small_bert().encoder.layer[0].attention.self
    assert "lost" in patch.summary()
    for call in (
        lambda: patch.enabled,
        lambda: patch.active_adapter,
        lambda: patch.set_adapter("default"),
        lambda: list(patch.parameters()),
        patch.merge,
    ):
        with pytest.raises(ArgumentError, match="where it is lost: another module stands in its place"):
            call()
    patch.save_pretrained(tmp_path / "kept")  # what was learned is not lost with it
    load_attention(small_bert(), tmp_path / "kept")


def test_a_projection_of_another_width_is_an_error(bert: BertModel) -> None:
    patch = patched(bert)
    bert.encoder.layer[0].attention.self.query = nn.Linear(32, 96)
    with pytest.raises(ArgumentError, match="a Linear of 96 channels. A tool has put other modules there"):
        bert(IDS)
    with pytest.raises(ArgumentError, match="where it is lost"):
        patch.merge()


@EVERY_MODEL
def test_a_saved_patched_model_is_read_again(
    make: type[nn.Module], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = make()
    patched(model)
    _say_who_reads_it.cache_clear()
    with caplog.at_level(logging.WARNING):
        model.save_pretrained(tmp_path / "whole")
        model.save_pretrained(tmp_path / "whole")
    assert caplog.text.count("see the bare model, without the metric") == 1
    options = {"add_pooling_layer": False} if isinstance(model, BertModel) else {}
    plain = type(model).from_pretrained(tmp_path / "whole", **options).eval()
    assert torch.equal(hidden(plain, IDS), hidden(make(), IDS))
    load_attention(plain, tmp_path / "whole")
    assert torch.equal(hidden(plain, IDS), hidden(model, IDS))


def test_codes_and_nan_are_not_written(bert: BertModel, tmp_path: Path) -> None:
    patch = patched(bert)
    structures = bert.encoder.layer[0].attention.self.gssf.adapters["default"].structures
    weight = structures["block_diagonal"].weight
    structures["block_diagonal"].weight = nn.Parameter(weight.detach().to(torch.uint8), requires_grad=False)
    with pytest.raises(ArgumentError, match=r"torch.uint8 codes in 'encoder.layer.0.attention.self\|structures.block"):
        patch.save_pretrained(tmp_path / "codes")
    structures["block_diagonal"].weight = nn.Parameter(weight.detach() * torch.nan)
    with pytest.raises(ArgumentError, match="NaN or infinite values"):
        patch.save_pretrained(tmp_path / "nan")
    assert not list(tmp_path.iterdir())


@EVERY_MODEL
def test_the_metric_keeps_float32_in_a_model_that_is_cast(make: type[nn.Module]) -> None:
    model = make()
    patch = patched(model)
    learned = [parameter.clone() for parameter in patch.parameters()]
    model.to(torch.bfloat16)
    assert all(torch.equal(now, then) for now, then in zip(patch.parameters(), learned, strict=True))
    first = make().to(torch.bfloat16)
    patched(first)
    assert torch.equal(hidden(model, IDS), hidden(first, IDS))
    optimizer = torch.optim.AdamW(patch.parameters(), lr=1e-4, weight_decay=0.0)
    model(IDS)[0].float().square().mean().backward()
    optimizer.step()
    moved = [(now != then).float().mean() for now, then in zip(patch.parameters(), learned, strict=True)]
    assert min(moved) > 0.9
    model.double()
    assert {parameter.dtype for parameter in patch.parameters()} == {torch.float64}


def test_merging_what_does_not_fold_does_not_advise_to_merge_the_rest(bert: BertModel) -> None:
    patch = patched(bert)
    quantize(bert, weights=qint8)
    freeze(bert)
    for partial in (False, True):
        with pytest.raises(ArgumentError, match="quantised") as error:
            patch.merge(partial=partial)
        assert "partial" not in str(error.value)
