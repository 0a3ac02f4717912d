"""Beside other libraries: PEFT beneath and on top, transformers' Trainer, a quantised base."""

import copy
import warnings
from pathlib import Path

import pytest
import torch
from attention.patching import hidden, perturb
from attention.small_models import IDS, small_llama
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import BertModel, LlamaForCausalLM, QuantoConfig, Trainer, TrainerCallback, TrainingArguments

from gssf_plug.attention import AttentionPatch, load_attention, patch_attention
from gssf_plug.errors import ArgumentError

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # by PEFT
EVERYWHERE = pytest.mark.parametrize("sites", ["projection", "score"])


def lora(model: nn.Module) -> PeftModel:
    """LoRA on queries and values, moved away from its neutral start."""
    wrapped = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"]))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return wrapped.eval()


@EVERYWHERE
def test_lora_beneath(llama: LlamaForCausalLM, sites: str) -> None:
    """The metric acts on LoRA's sum: the same as on a model into which LoRA was merged."""
    wrapped = lora(llama)
    plain = copy.deepcopy(wrapped).merge_and_unload()
    patches = [patch_attention(model, block_size=4, sites=sites) for model in (wrapped, plain)]
    for patch in patches:
        torch.manual_seed(0)
        perturb(patch, 0.5)
    torch.testing.assert_close(hidden(wrapped, IDS), hidden(plain, IDS), atol=1e-5, rtol=1e-5)
    wrapped(IDS)[0].square().mean().backward()
    assert all(p.grad is not None for p in patches[0].parameters())
    assert all(p.grad is not None for n, p in wrapped.named_parameters() if "lora_" in n)
    if sites == "projection":
        with pytest.raises(ArgumentError, match="is no single linear map; merge or unload the adapter .PEFT."):
            patches[0].merge()
    patches[0].remove()
    with torch.no_grad():
        unmerged = wrapped.merge_and_unload()
    patches[1].remove()
    torch.testing.assert_close(hidden(unmerged, IDS), hidden(plain, IDS), atol=1e-5, rtol=1e-5)


@EVERYWHERE
def test_lora_on_top(llama: LlamaForCausalLM, tmp_path: Path, sites: str) -> None:
    patch = patch_attention(llama, block_size=4, sites=sites)
    perturb(patch, 0.5)
    patched = hidden(llama, IDS)
    wrapped = lora(llama)
    with wrapped.disable_adapter():
        assert torch.equal(hidden(wrapped, IDS), patched)
    both = hidden(wrapped, IDS)
    assert not torch.allclose(both, patched, atol=1e-2)
    assert not any(p.requires_grad for p in patch.parameters())  # PEFT freezes all but its own
    for parameter in patch.parameters():
        parameter.requires_grad_(True)
    wrapped(IDS)[0].square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in patch.parameters())
    wrapped.save_pretrained(tmp_path / "lora")
    patch.save_pretrained(tmp_path / "metric")
    again = small_llama()
    load_attention(again, tmp_path / "metric")
    assert torch.equal(hidden(PeftModel.from_pretrained(again, tmp_path / "lora").eval(), IDS), both)
    patch.remove()
    assert not any(hook for module in wrapped.modules() for hook in module._forward_hooks.values())
    assert not torch.allclose(hidden(wrapped, IDS), both, atol=1e-2)


def texts(rows: int = 16) -> Dataset:
    ids = torch.randint(64, (rows, 9), generator=torch.Generator().manual_seed(1))
    return Dataset.from_dict({"input_ids": ids.tolist(), "labels": ids.tolist()})


def arguments(folder: Path, **options: object) -> TrainingArguments:
    common = {
        "per_device_train_batch_size": 4, "max_steps": 6, "learning_rate": 3e-2, "report_to": "none", "use_cpu": True,
        "disable_tqdm": True, "dataloader_pin_memory": False, "save_steps": 2, "eval_steps": 2, "logging_steps": 2,
        "eval_strategy": "steps", "seed": 0, "weight_decay": 0.0, "max_grad_norm": 0.0,
    }  # fmt: skip
    return TrainingArguments(output_dir=str(folder), **{**common, **options})


def ready(sites: str) -> tuple[LlamaForCausalLM, AttentionPatch]:
    model = small_llama()
    patch = patch_attention(model, block_size=4, sites=sites)
    patch.freeze_base()
    return model, patch


@EVERYWHERE
def test_trainer_trains_resumes_saves_and_loads_the_best(tmp_path: Path, sites: str) -> None:
    model, patch = ready(sites)
    base = {name: value.clone() for name, value in model.state_dict().items() if ".gssf." not in name}
    best = arguments(tmp_path / "whole", load_best_model_at_end=True, metric_for_best_model="loss")
    trainer = Trainer(model, best, train_dataset=texts(), eval_dataset=texts(8))
    trainer.train()
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert losses[-1] < losses[0]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses), abs=1e-6)
    assert all(torch.equal(value, base[name]) for name, value in model.state_dict().items() if name in base)
    whole = [parameter.clone() for parameter in patch.parameters()]

    model, patch = ready(sites)
    Trainer(model, arguments(tmp_path / "half", max_steps=6), train_dataset=texts(), eval_dataset=texts(8),
            callbacks=[StopAtFour()]).train()  # fmt: skip
    model, patch = ready(sites)
    trainer = Trainer(model, arguments(tmp_path / "half"), train_dataset=texts(), eval_dataset=texts(8))
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 6
    for one, other in zip(patch.parameters(), whole, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
    trainer.save_model(str(tmp_path / "saved"))
    plain = LlamaForCausalLM.from_pretrained(tmp_path / "saved").eval()
    with patch.disabled():
        assert torch.equal(hidden(model.eval(), IDS), hidden(plain, IDS))


class StopAtFour(TrainerCallback):
    """A run that ends too early, after its second checkpoint."""

    def on_step_end(self, args: object, state: object, control: object, **options: object) -> object:
        control.should_training_stop = state.global_step >= 4
        return control


@pytest.fixture
def quantised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LlamaForCausalLM:
    small_llama().save_pretrained(tmp_path / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = LlamaForCausalLM.from_pretrained(tmp_path / "base", quantization_config=QuantoConfig(weights="int8"))
    return model.eval()


@EVERYWHERE
def test_a_quantised_base(quantised: LlamaForCausalLM, tmp_path: Path, sites: str) -> None:
    """Patched and trained as it is; Trainer takes it inside one context; merging says why it cannot."""
    before = hidden(quantised, IDS)
    patch = patch_attention(quantised, block_size=4, sites=sites)
    assert torch.equal(hidden(quantised, IDS), before)
    patch.freeze_base()
    options = arguments(tmp_path / "run", eval_strategy="no", save_strategy="no")
    with pytest.raises(ValueError, match="cannot perform fine-tuning on purely quantized models"):
        Trainer(quantised, options, train_dataset=texts())
    with patch.accepted_by_trainer():
        trainer = Trainer(quantised, options, train_dataset=texts())
    assert quantised.is_quantized
    start = [parameter.clone() for parameter in patch.parameters()]
    trainer.train()
    assert all(not torch.equal(a, b) for a, b in zip(start, patch.parameters(), strict=True))
    trained = hidden(quantised.eval(), IDS)
    assert not torch.allclose(trained, before, atol=1e-3)
    with pytest.raises(ArgumentError, match="quantised"):
        patch.merge()
    assert "quantised" in patch.summary()
    assert torch.equal(hidden(quantised, IDS), trained)
    with patch.disabled():
        assert torch.equal(hidden(quantised, IDS), before)
    patch.save_pretrained(tmp_path / "adapter")
    patch.remove()
    assert torch.equal(hidden(quantised, IDS), before)


def test_a_base_that_torch_quantised_before_the_patch(bert: BertModel) -> None:
    """Its integer layers have no gradient, so nothing can train below them; the metric acts, and does not merge."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        small = torch.ao.quantization.quantize_dynamic(bert, {nn.Linear}, dtype=torch.qint8)
    before = hidden(small, IDS)
    patch = patch_attention(small, block_size=4)
    assert torch.equal(hidden(small, IDS), before)
    perturb(patch)
    patched = hidden(small, IDS)
    assert not torch.allclose(patched, before, atol=1e-2)
    with pytest.raises(ArgumentError, match="is no single linear map; merge or unload the adapter .PEFT. or the quant"):
        patch.merge()
    assert torch.equal(hidden(small, IDS), patched)
    patch.remove()
    assert torch.equal(hidden(small, IDS), before)


def test_the_context_changes_nothing_elsewhere(llama: LlamaForCausalLM) -> None:
    patch = patch_attention(llama, block_size=4)
    with patch.accepted_by_trainer():
        assert "is_quantized" not in llama.__dict__
    with pytest.raises(KeyError), patch.accepted_by_trainer():
        raise KeyError
